// A bundle that runs: its graphs, and the adapters that were loaded. What is refused changes nothing of what runs.

import { BundleError, readAdapter, readBase, tensors } from "./bundle.js";
import { Network, VERSION } from "./network.js";

export class Model {
  /** source: from `onServer` or `inFiles`; trust: as in `readBase`. */
  static async open(source, trust) {
    const base = await readBase(source, trust);
    const { runtime } = base.manifest;
    if (VERSION.localeCompare(runtime, "en", { numeric: true }) < 0) {
      throw new BundleError(
        `this bundle wants ONNX Runtime ${runtime}, and this is ${VERSION}; upgrade onnxruntime-web`,
      );
    }
    const networks = {};
    const { quantized, task } = base.manifest;
    const unpack = quantized === "int8" && ["ctc", "whisper"].includes(task?.kind); // as audiolora.edge.Session
    for (const [name, graph] of Object.entries(base.manifest.graphs)) {
      const file = `${name}.web.onnx`;
      if (!(file in base.files)) throw new BundleError(`base/${file}: not there; export the bundle with web=True`);
      networks[name] = await Network.open(base.files[file], graph, { unpack });
      delete base.files[file]; // it is in the runtime now
    }
    return new Model(source, trust, base, networks);
  }

  constructor(source, trust, base, networks) {
    Object.assign(this, { source, trust, base, networks, adapters: new Map() });
    this.stored = tensors(base.files["selftest.safetensors"], "base/selftest.safetensors");
  }

  /** Verify an adapter, run its self-test, and keep it in place of one of the same id. */
  async load(id) {
    const { manifest, files, tensors: found } = await readAdapter(this.source, id, this.base, this.trust);
    const ready = Object.fromEntries(
      Object.entries(this.networks).map(([name, network]) => [name, network.prepared(found)]),
    );
    const wanted = tensors(files["selftest.safetensors"], `adapters/${id}/selftest.safetensors`);
    const adapter = { manifest, ready, wanted };
    await this.selftest(id, adapter);
    this.adapters.set(id, adapter);
  }

  /** What the bundle is for, with this adapter (null: none): settings with their kind, or null. */
  task(id) {
    return this.adapters.get(id)?.manifest.task ?? this.base.manifest.task;
  }

  /** A graph's outputs and next states; inputs: {name: {shape, dtype, data}}, with states or from the beginning. */
  run(inputs, id, graph = "base", adapter = this.adapters.get(id)) {
    const network = this.networks[graph];
    return network.run({ ...network.initial(inputs), ...inputs }, adapter?.ready[graph] ?? null);
  }

  /** The input that was stored at export: {name: tensor} of a graph, states among them. */
  example(graph = "base") {
    return of(this.stored, `${graph}.input.`);
  }

  /** How far the stored input's outputs are off torch's: largest difference over largest output (or 1). */
  async selftest(id, adapter = this.adapters.get(id)) {
    const wanted = adapter?.wanted ?? this.stored;
    let worst = 0;
    for (const graph of Object.keys(this.networks)) {
      const found = await this.run(this.example(graph), id, graph, adapter);
      for (const [name, { data }] of Object.entries(of(wanted, `${graph}.output.`)))
        worst = Math.max(worst, difference(found[name].data, data));
    }
    const { tolerance } = this.base.manifest;
    if (!(worst <= tolerance))
      throw new BundleError(
        `${id ?? "base"}: this browser is off torch by ${worst.toExponential(1)}, and ${tolerance} is allowed`,
      );
    return worst;
  }

  async release() {
    for (const network of Object.values(this.networks)) await network.release();
  }
}

function of(stored, prefix) {
  const found = Object.entries(stored).filter(([name]) => name.startsWith(prefix));
  return Object.fromEntries(found.map(([name, tensor]) => [name.slice(prefix.length), tensor]));
}

function difference(found, wanted) {
  if (found.length !== wanted.length) return Infinity;
  let largest = 1,
    off = 0;
  for (let i = 0; i < wanted.length; i++) {
    const value = Number(found[i]),
      should = Number(wanted[i]);
    if (!Number.isFinite(value)) return Infinity;
    largest = Math.max(largest, Math.abs(should));
    off = Math.max(off, Math.abs(value - should));
  }
  return off / largest;
}
