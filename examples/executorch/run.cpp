// A bundle's program with the data files of several adapters, by ExecuTorch's C++ API: for each its output for one input.
//
//   run base/base.pte 1x3x168 base/base.ptd adapters/pump7/base.ptd adapters/pump8/base.ptd < x.f32
//
// base/base.ptd is no adapter. Each line is one output's numbers.
//
// It loads what it is given. An app verifies first: hashes against manifest.json, and that against its signature. It
// must also hold to the manifest's sizes, for ExecuTorch compares the number of values alone: with an input of another
// batch than the program's it may run and give wrong numbers.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/backend/options.h>

#include <cstdio>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

using executorch::extension::from_blob;
using executorch::extension::Module;

#ifndef WEIGHTS_CACHE
// XNNPACK's cache of packed weights, which some builds turn on, looks them up by their keys. All adapters of a program
// have the same keys: with the cache, of two that are loaded both would run with the weights of the first.
#define WEIGHTS_CACHE false
#endif

int main(int count, char** words) {
  if (count < 4) {
    std::fprintf(stderr, "usage: %s PROGRAM.pte 1x3x168 DATA.ptd... < values.f32\n", words[0]);
    return 1;
  }
  executorch::runtime::BackendOptions<1> options;
  options.set_option("weight_cache_enabled", WEIGHTS_CACHE);
  if (executorch::runtime::set_option("XnnpackBackend", options.view()) != executorch::runtime::Error::Ok) {
    std::fprintf(stderr, "XNNPACK's backend takes no options: is it linked?\n");
    return 1;
  }

  std::vector<executorch::aten::SizesType> shape;
  size_t values = 1;
  std::stringstream sizes(words[2]);
  for (std::string size; std::getline(sizes, size, 'x');) {
    shape.push_back(std::stoi(size));
    values *= shape.back();
  }
  std::vector<float> x(values);
  if (std::fread(x.data(), sizeof(float), values, stdin) != values) {
    std::fprintf(stderr, "stdin must hold %zu values of float32\n", values);
    return 1;
  }

  // One module an adapter, all of them loaded at once. Each holds its own copy of the weights as XNNPACK packs them.
  std::vector<std::unique_ptr<Module>> adapters;
  for (int i = 3; i < count; ++i) {
    adapters.push_back(std::make_unique<Module>(words[1], std::vector<std::string>{words[i]}));
    const auto error = adapters.back()->load_forward();
    if (error != executorch::runtime::Error::Ok) {
      std::fprintf(stderr, "%s: ExecuTorch refuses it: error 0x%x\n", words[i], static_cast<int>(error));
      return 2;
    }
  }
  for (const auto& adapter : adapters) {
    const auto result = adapter->forward(from_blob(x.data(), shape));
    if (!result.ok()) {
      std::fprintf(stderr, "ExecuTorch does not run it: error 0x%x\n", static_cast<int>(result.error()));
      return 2;
    }
    const auto y = result->at(0).toTensor();
    for (ssize_t i = 0; i < y.numel(); ++i) std::printf("%.9g ", y.const_data_ptr<float>()[i]);
    std::printf("\n");
  }
  return 0;
}
