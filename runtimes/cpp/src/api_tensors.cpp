#include "api.h"
#include "conditioning.h"
#include "safetensors.h"

using namespace vditc::internal;

namespace {

constexpr const char *TENSORS = "tensors", *CONDITIONING = "conditioning";

std::shared_ptr<Safetensors> tensors_of(vditc_tensors* handle) { return of_handle<Safetensors>(handle, TENSORS); }
std::shared_ptr<Conditioning> conditioning_of(vditc_conditioning* handle) { return of_handle<Conditioning>(handle, CONDITIONING); }

void tell(const std::string& name, const TensorView& view, const std::string& path, vditc_tensor* tensor) {
  if (view.shape.size() > VDITC_MAX_RANK) {
    throw Error(VDITC_ERROR_UNSUPPORTED, path, "tensor " + name + " " + shape_words(view.shape), text("at most %d axes", VDITC_MAX_RANK), "reshape it");
  }
  vditc_tensor made{};
  made.name = name.c_str(), made.data = view.data, made.bytes = view.bytes, made.dtype = view.dtype;
  made.rank = static_cast<uint32_t>(view.shape.size());
  std::copy(view.shape.begin(), view.shape.end(), made.shape);
  required(tensor, "tensor") = made;
}

}  // namespace

extern "C" {

vditc_status vditc_tensors_open(const char* path, vditc_tensors** tensors) {
  return guarded([&] {
    required(tensors, TENSORS) = nullptr;
    *tensors = new_handle<vditc_tensors>(std::make_shared<Safetensors>(&required(path, "path")));
  });
}

vditc_status vditc_tensors_destroy(vditc_tensors* tensors) {
  return guarded([&] { destroy_handle<Safetensors>(tensors, TENSORS); });
}

vditc_status vditc_tensors_count(vditc_tensors* tensors, uint64_t* count) {
  return guarded([&] { required(count, "count") = tensors_of(tensors)->tensors().size(); });
}

vditc_status vditc_tensors_get(vditc_tensors* handle, uint64_t index, vditc_tensor* tensor) {
  return guarded([&] {
    const auto file = tensors_of(handle);
    if (index >= file->tensors().size()) {
      throw Error(VDITC_ERROR_NOT_FOUND, file->path, text("tensor %llu", static_cast<unsigned long long>(index)),
                  text("fewer than %zu", file->tensors().size()), "ask vditc_tensors_count how many there are");
    }
    const auto found = std::next(file->tensors().begin(), static_cast<std::ptrdiff_t>(index));
    tell(found->first, found->second, file->path, tensor);
  });
}

vditc_status vditc_tensors_find(vditc_tensors* handle, const char* name, vditc_tensor* tensor) {
  return guarded([&] {
    const auto file = tensors_of(handle);
    const auto found = file->tensors().find(&required(name, "name"));
    if (found == file->tensors().end()) throw Error(VDITC_ERROR_NOT_FOUND, file->path, std::string("no tensor ") + name, "one of the file's", "check the name");
    tell(found->first, found->second, file->path, tensor);
  });
}

vditc_status vditc_tensors_metadata(vditc_tensors* handle, const char* key, char* text, size_t capacity, size_t* needed) {
  return guarded([&] {
    const auto file = tensors_of(handle);
    const auto found = file->metadata().find(&required(key, "key"));
    if (found == file->metadata().end()) throw Error(VDITC_ERROR_NOT_FOUND, file->path, std::string("no metadata ") + key, "a key of the file's", "check the key");
    copy_text(found->second, text, capacity, needed);
  });
}

vditc_status vditc_tensors_write(const char* path, const vditc_tensor* tensors, uint64_t count) {
  return guarded([&] {
    std::map<std::string, TensorView> all;
    for (uint64_t i = 0; i < count; ++i) {
      const vditc_tensor& tensor = (&required(tensors, TENSORS))[i];
      const std::string name = &required(tensor.name, "name of a tensor");
      TensorView view{tensor.dtype, Shape(tensor.shape, tensor.shape + std::min<uint32_t>(tensor.rank, VDITC_MAX_RANK)), tensor.data, tensor.bytes};
      const int64_t numbers = elements(view.shape);
      if (dtype_size(tensor.dtype) == 0 || tensor.rank > VDITC_MAX_RANK || numbers < 0 || name == "__metadata__" || all.count(name) != 0 ||
          static_cast<uint64_t>(numbers) * dtype_size(tensor.dtype) != tensor.bytes || (tensor.bytes > 0 && tensor.data == nullptr)) {
        throw Error(VDITC_ERROR_ARGUMENT, path, "tensor " + name + " " + dtype_name(tensor.dtype) + " " + shape_words(view.shape) +
                    text(" in %llu bytes", static_cast<unsigned long long>(tensor.bytes)),
                    "a name of its own, and data of as many bytes as its shape says", "correct the tensor");
      }
      all[name] = std::move(view);
    }
    write_safetensors(&required(path, "path"), all);
  });
}

vditc_status vditc_conditioning_open(const char* path, vditc_conditioning** conditioning) {
  return guarded([&] {
    required(conditioning, CONDITIONING) = nullptr;
    *conditioning = new_handle<vditc_conditioning>(std::make_shared<Conditioning>(std::string(&required(path, "path"))));
  });
}

vditc_status vditc_conditioning_create(const int64_t latent_shape[4], const uint64_t* seeds, uint64_t clips, vditc_conditioning** conditioning) {
  return guarded([&] {
    required(conditioning, CONDITIONING) = nullptr;
    *conditioning = new_handle<vditc_conditioning>(std::make_shared<Conditioning>(&required(latent_shape, "latent_shape"), &required(seeds, "seeds"), clips));
  });
}

vditc_status vditc_conditioning_destroy(vditc_conditioning* conditioning) {
  return guarded([&] { destroy_handle<Conditioning>(conditioning, CONDITIONING); });
}

vditc_status vditc_conditioning_set_input(vditc_conditioning* conditioning, const char* name, const vditc_tensor* tensor) {
  return guarded([&] { conditioning_of(conditioning)->set_input(&required(name, "name"), required(tensor, "tensor")); });
}

vditc_status vditc_conditioning_set_empty(vditc_conditioning* conditioning, const char* name, const vditc_tensor* tensor) {
  return guarded([&] { conditioning_of(conditioning)->set_empty(&required(name, "name"), required(tensor, "tensor")); });
}

vditc_status vditc_conditioning_set_channels(vditc_conditioning* conditioning, const vditc_tensor* tensor) {
  return guarded([&] { conditioning_of(conditioning)->set_channels(required(tensor, "tensor")); });
}

vditc_status vditc_conditioning_set_known(vditc_conditioning* conditioning, const vditc_tensor* tensor, const int64_t* frames, uint64_t count) {
  return guarded([&] { conditioning_of(conditioning)->set_known(required(tensor, "tensor"), count ? &required(frames, "frames") : nullptr, count); });
}

vditc_status vditc_conditioning_shape(vditc_conditioning* conditioning, uint64_t* clips, int64_t latent_shape[4]) {
  return guarded([&] {
    const Clips found = conditioning_of(conditioning)->snapshot();
    if (clips != nullptr) *clips = found.count();
    if (latent_shape != nullptr) std::copy(found.latent_shape, found.latent_shape + 4, latent_shape);
  });
}
}
