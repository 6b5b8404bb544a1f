// What stands around the tokens of a prompt, and how many there are: `post_processor`, `truncation` and `padding` of a tokenizer.json.
#pragma once
#include <string>
#include <vector>

#include "json.h"
#include "text/models.h"

namespace vditc::internal {

class PostProcessor {
 public:
  PostProcessor(const Json& file, const std::string& where);
  // Cut, with its special tokens.
  Ids processed(const Ids& ids) const;
  // All as long as the file says, with masks (1: a token, 0: padding).
  void pad(std::vector<Ids>& ids, std::vector<Ids>& masks) const;

 private:
  // A part of what is made: the tokens of before, or fixed ones.
  struct Part {
    bool sequence = false;
    Ids ids;
  };
  std::vector<std::vector<Part>> steps_;
  size_t added_ = 0;  // special tokens
  bool cuts_ = false, cuts_left_ = false;
  size_t most_ = 0;
  bool pads_ = false, pads_left_ = false, longest_ = false;
  size_t length_ = 0, multiple_ = 0;
  int64_t pad_id_ = 0;

  void add(const Json& about, const std::string& where);
  void read_template(const Json& about, const std::string& where);
  void read_truncation(const Json& about, const std::string& where);
  void read_padding(const Json& about, const std::string& where);
};

}  // namespace vditc::internal
