// A graph for browsers in onnxruntime-web: every slot is given in each run, zeros of rank 1 where there is no adapter.

import * as ort from "./vendor/ort.wasm.bundle.min.mjs";

import { BundleError } from "./bundle.js";

ort.env.wasm.wasmPaths = { wasm: new URL("./vendor/ort-wasm-simd-threaded.wasm", import.meta.url).href };
ort.env.wasm.numThreads = 1; // more would need a server that isolates the page's origin
ort.env.logLevel = "error";

export const VERSION = ort.env.versions.web;

const TYPES = { F32: "float32", I32: "int32", I64: "int64", BOOL: "bool" };

export class Network {
  /**
   * model: the bytes of NAME.web.onnx; graph: what the manifest says of it; unpack: make float weights of int8 ones now,
   * and not in each run.
   */
  static async open(model, graph, { unpack = false } = {}) {
    const extra = unpack ? { session: { disable_quant_qdq: "1" } } : {};
    const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"], extra });
    const takes = [...names(graph.inputs), ...graph.states.map(({ input }) => input), ...names(graph.slots)];
    const gives = [...names(graph.outputs), ...graph.states.map(({ output }) => output)];
    if (!same(session.inputNames, takes) || !same(session.outputNames, gives)) {
      throw new BundleError("the graph's inputs and outputs are not those of the manifest; export it again");
    }
    return new Network(session, graph, gives);
  }

  constructor(session, graph, gives) {
    Object.assign(this, { session, graph, gives });
    this.none = this.prepared(
      Object.fromEntries(graph.slots.map(({ name, shape }) => [name, zeros(shape, {}, 1, "float32")])),
    );
  }

  /** An adapter's tensors, made ready once for any number of runs. */
  prepared(tensors) {
    return feeds(Object.fromEntries(names(this.graph.slots).map((name) => [name, tensors[name]])));
  }

  /** The states before the first run. A free size that an input has too is that one's, any other is 0. */
  initial(inputs) {
    const sizes = {};
    for (const { name, shape } of this.graph.inputs) shape.forEach((size, i) => (sizes[size] = inputs[name].shape[i]));
    return Object.fromEntries(
      this.graph.states.map(({ input, shape, dtype }) => [input, zeros(shape, sizes, 0, dtype)]),
    );
  }

  /** inputs (states among them): {name: {shape, dtype, data}}; adapter: from `prepared`, or null. */
  async run(inputs, adapter = null) {
    const found = await this.session.run({ ...feeds(inputs), ...(adapter ?? this.none) });
    const dtype = (tensor) => Object.keys(TYPES).find((key) => TYPES[key] === tensor.type);
    return Object.fromEntries(
      this.gives.map((name) => [
        name,
        { shape: [...found[name].dims], dtype: dtype(found[name]), data: found[name].data },
      ]),
    );
  }

  release() {
    return this.session.release();
  }
}

function names(specs) {
  return specs.map(({ name }) => name);
}

function same(found, wanted) {
  return found.length === wanted.length && wanted.every((name) => found.includes(name));
}

function zeros(shape, sizes, otherwise, dtype) {
  if (dtype !== "float32") throw new BundleError(`a state of ${dtype}, and this page keeps float32`);
  const found = shape.map((size) => (typeof size === "number" ? size : (sizes[size] ?? otherwise)));
  return { dtype: "F32", shape: found, data: new Float32Array(found.reduce((a, b) => a * b, 1)) };
}

function feeds(tensors) {
  return Object.fromEntries(
    Object.entries(tensors).map(([name, { dtype, shape, data }]) => [name, new ort.Tensor(TYPES[dtype], data, shape)]),
  );
}
