// A graph for browsers in onnxruntime-web: every slot is given in each run, zeros of rank 1 where there is no adapter.

import * as ort from "./vendor/ort.wasm.bundle.min.mjs";

import { BundleError } from "./bundle.js";

ort.env.wasm.wasmPaths = new URL("./vendor/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more would need a server that isolates the page's origin
ort.env.logLevel = "error";

const TYPES = { float32: "F32", int32: "I32", int64: "I64", bool: "BOOL" };

export class Network {
  /** model: the bytes of NAME.web.onnx; graph: its inputs, outputs and slots in the manifest. */
  static async open(model, graph) {
    const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
    const wanted = [...graph.inputs, ...graph.slots].map((spec) => spec.name);
    const same = (found, names) => found.length === names.length && names.every((name) => found.includes(name));
    if (!same(session.inputNames, wanted) || !same(session.outputNames, graph.outputs.map((spec) => spec.name))) {
      throw new BundleError("the graph's inputs and outputs are not those of the manifest; export it again");
    }
    return new Network(session, graph);
  }

  constructor(session, graph) {
    this.session = session;
    this.graph = graph;
    this.none = feeds(Object.fromEntries(graph.slots.map(({ name, shape }) => {
      const sizes = shape.map((size) => (typeof size === "number" ? size : 1));
      return [name, { dtype: "F32", shape: sizes, data: new Float32Array(sizes.reduce((a, b) => a * b, 1)) }];
    })));
  }

  /** An adapter's tensors, once, for any number of runs. */
  prepared(tensors) {
    return feeds(Object.fromEntries(this.graph.slots.map(({ name }) => [name, tensors[name]])));
  }

  /** inputs: {name: {shape, dtype, data}}; adapter: from `prepared`, or null. Returns the outputs, and the time in ms. */
  async run(inputs, adapter = null) {
    const given = { ...feeds(inputs), ...(adapter ?? this.none) };
    const begin = performance.now();
    const found = await this.session.run(given);
    const took = performance.now() - begin;
    const outputs = this.graph.outputs.map(({ name }) => [name, { shape: [...found[name].dims], data: found[name].data }]);
    return { outputs: Object.fromEntries(outputs), took };
  }

  /** The stored input through this adapter: the largest difference from torch, over the largest output (or 1). */
  async selftest(stored, wanted, adapter = null) {
    const inputs = Object.fromEntries(this.graph.inputs.map(({ name }) => [name, stored[`input.${name}`]]));
    const { outputs } = await this.run(inputs, adapter);
    let worst = 0;
    for (const { name } of this.graph.outputs) {
      const y = outputs[name].data, should = wanted[`output.${name}`].data;
      if (y.length !== should.length) return Infinity;
      const largest = should.reduce((most, value) => Math.max(most, Math.abs(Number(value))), 1);
      const off = y.reduce((most, value, i) => Math.max(most, Math.abs(Number(value) - Number(should[i]))), 0);
      worst = Math.max(worst, Number.isNaN(off) ? Infinity : off / largest);
    }
    return worst;
  }

  release() {
    return this.session.release();
  }
}

function feeds(tensors) {
  const types = Object.fromEntries(Object.entries(TYPES).map(([ours, theirs]) => [theirs, ours]));
  return Object.fromEntries(Object.entries(tensors).map(([name, { dtype, shape, data }]) => [name, new ort.Tensor(types[dtype], data, shape)]));
}
