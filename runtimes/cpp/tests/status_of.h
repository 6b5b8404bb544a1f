// The status with which some work ends.
#pragma once
#include "vditc/vditc.hpp"

template <class Work>
vditc_status status_of(Work work) {
  try {
    work();
  } catch (const vditc::Error& error) {
    return error.status();
  }
  return VDITC_OK;
}
