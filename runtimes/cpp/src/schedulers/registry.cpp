// Finds the walk of a scheduler_config.json.
#include <algorithm>
#include <cmath>

#include "schedulers/solvers.h"

namespace vditc::internal {
namespace {

const Solver SOLVERS[] = {
    {"FlowMatchEulerDiscreteScheduler", flow_match_euler, FLOW_MATCH_EULER},
    {"UniPCMultistepScheduler", unipc, UNIPC},
    {"DPMSolverMultistepScheduler", dpm, DPM},
    {"DDIMScheduler", ddim, DDIM},
    {"CogVideoXDDIMScheduler", cogvideox_ddim, COGVIDEOX},
    {"CogVideoXDPMScheduler", cogvideox_dpm, COGVIDEOX},
    {"EulerDiscreteScheduler", euler, EULER},
    {"EDMEulerScheduler", edm, EDM_EULER},
    {"EDMDPMSolverMultistepScheduler", edm, EDM_DPM},
};
// Schedulers that vditc does not have: DDIM walks the same noise levels in their place.
const char* const BY_DDIM[] = {"DDPMScheduler", "DEISMultistepScheduler", "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "PNDMScheduler"};

const Solver* solver_named(const std::string& name) {
  for (const Solver& solver : SOLVERS) {
    if (name == solver.name) return &solver;
  }
  return nullptr;
}

std::string names(bool stand_ins) {
  std::string made;
  for (const Solver& solver : SOLVERS) made += (made.empty() ? "" : ", ") + std::string(solver.name);
  for (const char* other : BY_DDIM) made += stand_ins ? std::string(", ") + other : "";
  return made;
}

bool begins(const std::string& name, const char* with) { return name.rfind(with, 0) == 0; }

Json word(const std::string& value) {
  Json made;
  made.kind = Json::TEXT, made.text = value;
  return made;
}
Json truth(bool value) {
  Json made;
  made.kind = Json::BOOL, made.truth = value;
  return made;
}
Json real(double value) {
  Json made;
  made.kind = Json::REAL, made.real = value;
  return made;
}

void put(Json& config, const std::string& name, Json value) {
  if (const Json* own = config.find(name)) {
    *const_cast<Json*>(own) = std::move(value);
  } else {
    config.members.emplace_back(name, std::move(value));
  }
}

}  // namespace

Json solver_config(const Json& config, const std::string& solver, const std::string& where) {
  const std::string own = config["_class_name"].text_or("None");
  const bool stand_in = std::find(std::begin(BY_DDIM), std::end(BY_DDIM), own) != std::end(BY_DDIM);
  if (solver_named(own) == nullptr && !stand_in) {
    throw Error(VDITC_ERROR_UNSUPPORTED, where, "scheduler " + own, "one of " + names(true), "save the pipeline with one of these schedulers");
  }
  const std::string name = !solver.empty() ? solver : stand_in ? "DDIMScheduler" : own;
  if (name == own) return config;
  const Solver* chosen = solver_named(name);
  if (chosen == nullptr) {
    throw Error(VDITC_ERROR_ARGUMENT, where, "solver " + name, "one of " + names(false), "choose one of these");
  }
  const Json known = Json::parse(chosen->about.defaults, name);
  const bool flow = own == "FlowMatchEulerDiscreteScheduler" || config["use_flow_sigmas"].truth;
  const bool takes_flow = name == "FlowMatchEulerDiscreteScheduler" || known.find("use_flow_sigmas") != nullptr;
  int families = 0, kinds = 0;  // classes of CogVideoX and EDM go together with their like alone
  for (const char* family : {"CogVideoX", "EDM"}) {
    const int here = begins(own, family) + begins(name, family);
    families += here, kinds += here > 0;
  }
  if ((flow && !takes_flow) || (!flow && name == "FlowMatchEulerDiscreteScheduler") || kinds + families == 2) {
    throw Error(VDITC_ERROR_ARGUMENT, where, name + " over the noise levels of " + own, "a solver of the same kind of model",
                "choose one of flows for a flow, of CogVideoX for CogVideoX, of EDM for EDM");
  }
  Json made;
  made.kind = Json::OBJECT;
  put(made, "_class_name", word(name));
  const auto carry = [&](std::initializer_list<const char*> options) {  // which noise levels a model has
    for (const char* option : options) {
      const Json* value = config.find(option);
      if (value != nullptr && known.find(option) != nullptr) put(made, option, *value);
    }
  };
  if (flow) {
    const double shift = config.find("flow_shift") ? config["flow_shift"].number_or(1) : config["shift"].number_or(1);
    if (known.find("shift") != nullptr) {
      put(made, "shift", real(shift));
    } else {
      put(made, "flow_shift", real(shift)), put(made, "use_flow_sigmas", truth(true)), put(made, "prediction_type", word("flow_prediction"));
    }
    carry({"num_train_timesteps", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "shift_terminal"});
    return made;
  }
  carry({"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type", "timestep_spacing", "steps_offset",
         "rescale_betas_zero_snr", "set_alpha_to_one", "snr_shift_scale", "sigma_min", "sigma_max", "sigma_data", "rho"});
  if (known.find("clip_sample") != nullptr) put(made, "clip_sample", truth(false));
  return made;
}

Json shifted_config(const Json& config, double shift, const std::string& where) {
  const std::string name = config["_class_name"].text_or("");
  const Solver* solver = solver_named(name);
  const bool own = solver != nullptr && Json::parse(solver->about.defaults, name).find("shift") != nullptr;
  const char* option = own ? "shift" : config["use_flow_sigmas"].truth ? "flow_shift" : nullptr;
  if (option == nullptr || !(std::isfinite(shift) && shift > 0)) {
    throw Error(VDITC_ERROR_ARGUMENT, where, "shift " + number(shift) + " of " + name, "a shift above 0, of a solver of flows",
                option == nullptr ? "leave out the shift" : "choose another shift");
  }
  Json made = config;
  put(made, option, real(shift));
  put(made, "use_dynamic_shifting", truth(false));
  return made;
}

std::shared_ptr<const Walk> walk_of(const Json& config, int64_t steps, const Given& given, const std::string& where) {
  constexpr int64_t MOST = 100000;
  if (steps < 1 || steps > MOST) {
    throw Error(VDITC_ERROR_ARGUMENT, "sampling", text("%lld steps", static_cast<long long>(steps)), text("1 to %lld", static_cast<long long>(MOST)),
                "change the number of steps");
  }
  const Json own = solver_config(config, "", where);
  const Solver& solver = *solver_named(own["_class_name"].text);
  auto made = std::make_shared<Walk>(solver.build(own, static_cast<size_t>(steps), given, where));
  made->name = solver.name;
  made->check(where);
  return made;
}

std::shared_ptr<const Walk> walk_of_table(const Json& schedule, const std::string& where) {
  auto made = std::make_shared<Walk>();
  const auto table = [&](const char* name) {
    std::vector<float> found;
    for (const Json& item : schedule[name].items) found.push_back(static_cast<float>(item.number_or(NAN)));
    if (found.empty() || (!made->timesteps.empty() && found.size() != made->timesteps.size())) {
      throw Error(VDITC_ERROR_DAMAGED, where, text("a schedule with %zu %s", found.size(), name), "one number for each step", "compile again");
    }
    return found;
  };
  made->name = schedule["scheduler"].text_or("table");
  made->timesteps = table("timesteps");
  const std::vector<float> seen = table("seen"), kept = table("kept"), added = table("added"), noise = table("noise");
  made->start = schedule["start"].number_or(NAN);
  for (size_t i = 0; i < made->timesteps.size(); ++i) {
    Row row;
    row.seen = seen[i];
    row.following = {kept[i], added[i]};
    made->rows.push_back(row);
  }
  made->sigmas = noise;
  const Json& behind = schedule["behind"];
  made->sigmas.push_back(behind.items.size() == 2 ? static_cast<float>(behind.items[1].number_or(0)) : 0.0f);
  made->check(where);
  return made;
}

}  // namespace vditc::internal
