#include "api.h"
#include "bundle.h"
#include "decoder.h"
#include "text/text_encoder.h"

using namespace vditc::internal;

namespace {

constexpr const char* BUNDLE = "bundle";

std::shared_ptr<Bundle> bundle_of(vditc_bundle* handle) { return of_handle<Bundle>(handle, BUNDLE); }

vditc_bundle_options options_of(const vditc_bundle_options* given) {
  return taken(given, vditc_bundle_options{}, sizeof(vditc_bundle_options), "vditc_bundle_options");
}

void verify(Bundle& bundle, const vditc_bundle_options& options) {
  const auto progress = [&options](uint64_t done, uint64_t total) {
    vditc_progress said{};
    said.abi_version = VDITC_ABI_VERSION, said.struct_size = sizeof said;
    said.done = done, said.total = total;
    return options.progress(options.user, &said) == 0;
  };
  if (options.threads < 0) throw Error(VDITC_ERROR_ARGUMENT, BUNDLE, text("%d threads", options.threads), "0 or more", "correct the options");
  if (!bundle.verify(options.threads, options.progress ? OnProgress(progress) : OnProgress())) {
    throw Error(VDITC_CANCELLED, "bundle " + bundle.path(), "a callback that asks to stop", "0", "verify again");
  }
}

template <class List>
auto& at(const List& list, uint64_t index, const char* what) {
  if (index >= list.size()) {
    throw Error(VDITC_ERROR_NOT_FOUND, BUNDLE, text("%s %llu", what, static_cast<unsigned long long>(index)), text("fewer than %zu", list.size()),
                "ask vditc_bundle_info_get how many there are");
  }
  return list[index];
}

}  // namespace

extern "C" {

vditc_status vditc_bundle_options_init(vditc_bundle_options* options, size_t struct_size) {
  return guarded([&] { initialised(options, struct_size, vditc_bundle_options{}, sizeof(vditc_bundle_options), "vditc_bundle_options"); });
}

vditc_status vditc_bundle_open(const char* path, const vditc_bundle_options* given, vditc_bundle** bundle) {
  return guarded([&] {
    required(bundle, BUNDLE) = nullptr;
    const vditc_bundle_options options = options_of(given);
    std::shared_ptr<Bundle> made = Bundle::open(&required(path, "path"));
    if (options.hashes) verify(*made, options);
    *bundle = new_handle<vditc_bundle>(std::move(made));
  });
}

vditc_status vditc_bundle_destroy(vditc_bundle* bundle) {
  return guarded([&] { destroy_handle<Bundle>(bundle, BUNDLE); });
}

vditc_status vditc_bundle_verify(vditc_bundle* bundle, const vditc_bundle_options* given) {
  return guarded([&] { verify(*bundle_of(bundle), options_of(given)); });
}

vditc_status vditc_bundle_manifest(vditc_bundle* bundle, char* text, size_t capacity, size_t* needed) {
  return guarded([&] { copy_text(bundle_of(bundle)->text(), text, capacity, needed); });
}

vditc_status vditc_bundle_info_get(vditc_bundle* handle, vditc_bundle_info* info) {
  return guarded([&] {
    const auto bundle = bundle_of(handle);
    const Json &manifest = bundle->manifest(), &sampling = manifest["sampling"];
    const auto words = [](const Json& value) { return value.is(Json::TEXT) ? value.text.c_str() : ""; };
    vditc_bundle_info made{};
    made.schema = static_cast<int32_t>(manifest["schema"].integer);
    made.steps = static_cast<int32_t>(sampling["schedule"]["timesteps"].items.size());
    made.files = bundle->files().size(), made.targets = bundle->targets().size();
    made.inputs = manifest["inputs"].items.empty() ? 0 : bundle->inputs().size(), made.experts = bundle->experts().size();
    for (const FileEntry& file : bundle->files()) made.bytes += file.bytes;
    made.mean_bits = manifest["mean_bits"].number_or(0);
    made.guidance_scale = sampling["guidance_scale"].number_or(1);
    const Json& shape = sampling["latent_shape"];
    for (size_t i = 0; i < 4 && i < shape.items.size(); ++i) made.latent_shape[i] = shape.items[i].integer_or(0);
    made.made_by = words(manifest["vditc"]), made.model_class = words(manifest["model"]["class"]), made.recipe = words(manifest["recipe"]["name"]);
    made.fps = frame_rate(*bundle), made.decodes = has_decoder(*bundle), made.encodes = encodes_prompts(*bundle);
    filled(info, made, offsetof(vditc_bundle_info, fps), "vditc_bundle_info");
  });
}

vditc_status vditc_bundle_file(vditc_bundle* handle, uint64_t index, vditc_file_info* info) {
  return guarded([&] {
    const auto bundle = bundle_of(handle);
    const FileEntry& file = at(bundle->files(), index, "file");
    vditc_file_info made{};
    made.name = file.name.c_str(), made.bytes = file.bytes, made.sha256 = file.sha256.c_str();
    filled(info, made, sizeof made, "vditc_file_info");
  });
}

vditc_status vditc_bundle_target(vditc_bundle* handle, uint64_t index, vditc_target_info* info) {
  return guarded([&] {
    const auto bundle = bundle_of(handle);
    const Target& target = at(bundle->targets(), index, "target");
    vditc_target_info made{};
    made.name = target.name.c_str(), made.backend = target.backend.c_str(), made.status = target.status.c_str();
    made.version = target.version.c_str(), made.arch = target.arch.c_str(), made.library = target.library.c_str();
    made.plan_bytes = target.plan_bytes;
    filled(info, made, sizeof made, "vditc_target_info");
  });
}

vditc_status vditc_bundle_input(vditc_bundle* handle, uint64_t index, vditc_input_info* info) {
  return guarded([&] {
    const auto bundle = bundle_of(handle);
    const InputSpec& spec = at(bundle->inputs(), index, "input");
    vditc_input_info made{};
    made.name = spec.name.c_str(), made.fill = spec.fill.c_str(), made.dtype = spec.dtype, made.rank = static_cast<uint32_t>(spec.dims.size());
    for (size_t i = 0; i < spec.dims.size(); ++i) {
      const Dim& dim = spec.dims[i];
      const Range* range = dim.axis.empty() ? nullptr : bundle->range(dim.axis);
      made.dims[i] = dim.size;
      made.axes[i] = dim.axis.empty() ? nullptr : dim.axis.c_str();
      made.smallest[i] = range ? range->smallest : dim.size;
      made.greatest[i] = range ? range->greatest : dim.size;
    }
    filled(info, made, sizeof made, "vditc_input_info");
  });
}

vditc_status vditc_bundle_expert(vditc_bundle* handle, uint64_t index, vditc_bundle** expert) {
  return guarded([&] {
    required(expert, "expert") = nullptr;
    const auto bundle = bundle_of(handle);
    *expert = new_handle<vditc_bundle>(at(bundle->experts(), index, "expert"));
  });
}
}
