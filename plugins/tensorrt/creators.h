// The creators of all plugins, one of each operator of plugins/catalogue.py.
#pragma once
#include "tensorrt/abi.h"

namespace vditc::tensorrt {

nvinfer1::IPluginCreatorInterface* qattention_creator();
nvinfer1::IPluginCreatorInterface* qlinear_creator();
nvinfer1::IPluginCreatorInterface* quantize_token_creator();

constexpr int CREATORS = 3;
inline nvinfer1::IPluginCreatorInterface* const* creators() {
  static nvinfer1::IPluginCreatorInterface* const all[CREATORS] = {qattention_creator(), qlinear_creator(), quantize_token_creator()};
  return all;
}

}  // namespace vditc::tensorrt
