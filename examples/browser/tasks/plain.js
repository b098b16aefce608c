// A bundle without a task: tensors in, tensors out. The input is the stored one, the columns of a CSV, or sound.

import { numbers, parse } from "../table.js";

const MOST_LINES = 6;

export const kind = null;
export const accepts = ".csv,text/csv";

export function hint(_, model) {
  const inputs = model.base.manifest.graphs.base.inputs.map(({ name, shape }) => `${name} (${shape.join(", ")})`);
  const files = hears(model) ? "a CSV with a column a channel, or sound" : "a CSV with a column a channel";
  return `The network takes ${inputs.join(" and ")}. Run the stored input, or open ${files}.`;
}

export function stored(model) {
  return { name: "the stored input", inputs: model.example() };
}

export async function read(file, model) {
  const table = parse(await file.text());
  const columns = table.names.map((name) => numbers(table, name)).filter((column) => column.every(Number.isFinite));
  return { name: file.name, inputs: shaped(model, columns) };
}

/** Whether this network may take sound: one input of one channel and any length. */
export function hears(model) {
  const [{ shape }, ...more] = model.base.manifest.graphs.base.inputs;
  return (
    !more.length && typeof shape.at(-1) === "string" && (shape.length === 2 || (shape.length === 3 && shape[1] === 1))
  );
}

export function heard({ samples }, model) {
  return { name: "sound", inputs: shaped(model, [samples]) };
}

export async function run(model, id, { inputs }) {
  const begin = performance.now();
  const outputs = await model.run(inputs, id);
  return { took: performance.now() - begin, outputs };
}

export function show(model, id, { name }, results) {
  const { name: output } = model.base.manifest.graphs.base.outputs[0];
  const { shape, data } = results.get(id).outputs[output];
  const length = shape.at(-1),
    count = shape.reduce((a, b) => a * b, 1) / length;
  const rows = Array.from({ length: count }, (_, i) => Array.from(data.subarray(i * length, (i + 1) * length), Number));
  const lines = rows
    .slice(0, MOST_LINES)
    .map((values, i) => ({ label: `${output}[${i}]`, kind: `c${i}`, start: 0, values }));
  const more = count > MOST_LINES ? `, the first ${MOST_LINES} of ${count} rows` : "";
  return {
    title: `${name}: ${output} (${shape.join(", ")})${more}`,
    chart: { lines, label: String, summary: `${output} with ${id ?? "the base"}` },
    table: {
      names: ["", ...lines.map(({ label }) => label)],
      rows: Array.from({ length }, (_, i) => [i, ...lines.map(({ values }) => values[i])]),
    },
  };
}

function shaped(model, columns) {
  const { inputs } = model.base.manifest.graphs.base;
  const [{ name, shape, dtype }] = inputs;
  const wanted = `${name} (${shape.join(", ")})`;
  const channels = shape.length === 3 ? shape[1] : 1;
  if (inputs.length !== 1 || dtype !== "float32" || ![2, 3].includes(shape.length))
    throw new Error(`${wanted}: only the stored input can be run here`);
  if (typeof channels === "number" && columns.length !== channels)
    throw new Error(`${columns.length} columns of numbers, and ${wanted} is needed`);
  const steps = typeof shape.at(-1) === "number" ? shape.at(-1) : columns[0].length;
  if (columns[0].length < steps) throw new Error(`${columns[0].length} rows, and ${wanted} is needed`);
  const data = Float32Array.from(columns.flatMap((column) => Array.from(column.slice(-steps))));
  return { [name]: { dtype: "F32", shape: shape.length === 3 ? [1, columns.length, steps] : [1, steps], data } };
}
