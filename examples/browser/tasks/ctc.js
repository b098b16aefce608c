// A bundle's task "ctc": sound in, one graph, each frame's most probable output, repetitions and blanks taken out.

import { checkLength } from "./text.js";

export { heard, show } from "./text.js";
export const kind = "ctc";
export const hears = () => true;

export function hint({ sample_rate_hz }) {
  return `Sound: a file or the microphone; it is resampled to ${sample_rate_hz} Hz.`;
}

export async function run(model, id, { samples }) {
  const settings = model.task(id);
  checkLength(samples, fewest(settings), Infinity, settings.sample_rate_hz);
  const begin = performance.now();
  const inputs = { input_values: { dtype: "F32", shape: [1, samples.length], data: normalized(settings, samples) } };
  if (settings.masked) inputs.lengths = { dtype: "I64", shape: [1], data: BigInt64Array.of(BigInt(samples.length)) };
  const [{ shape, data }] = Object.values(await model.run(inputs, id));
  const width = shape[2];
  const path = Array.from({ length: shape[1] }, (_, i) => {
    let best = i * width;
    for (let j = best + 1; j < (i + 1) * width; j++) if (data[j] > data[best]) best = j;
    return settings.vocabulary[best - i * width];
  });
  return { took: performance.now() - begin, text: written(settings, path) };
}

function normalized({ normalized }, samples) {
  if (!normalized) return samples;
  const mean = samples.reduce((sum, x) => sum + x, 0) / samples.length;
  const variance = samples.reduce((sum, x) => sum + (x - mean) ** 2, 0) / samples.length;
  return samples.map((x) => (x - mean) / Math.sqrt(variance + 1e-7));
}

/** The text of a path: what each frame was taken for. */
export function written({ blank, dropped, delimiter, space, lower, tidied }, path) {
  const once = path.filter((text, i) => i === 0 || text !== path[i - 1]);
  const kept = once.filter((text) => text !== blank && !dropped.includes(text));
  let text = kept
    .map((one) => (one === delimiter ? space : one))
    .join("")
    .trim();
  if (lower) text = text.toLowerCase();
  for (const [before, after] of tidied ? TIDY : []) text = text.replaceAll(before, after);
  return text;
}

// transformers' clean_up_tokenization, in its order.
const TIDY = [
  ...[".", "?", "!", ","].map((mark) => [` ${mark}`, mark]),
  [" ' ", "'"],
  ...["n't", "'m", "'s", "'ve", "'re"].map((ending) => [` ${ending}`, ending]),
];

function fewest({ convolutions, fewest_frames }) {
  return convolutions.reduceRight((n, [kernel, stride]) => (n - 1) * stride + kernel, fewest_frames);
}
