// A bundle's task "whisper": features, the encoder once, the decoder with its cache token by token, greedily.

import { tensors } from "../bundle.js";
import { logMel } from "./mel.js";
import { checkLength } from "./text.js";

export { heard, show } from "./text.js";
export const kind = "whisper";
export const hears = () => true;

const FILTERS = "mel.safetensors",
  VOCABULARY = "vocabulary.json";

export function hint({ sample_rate_hz, max_frames, hop }) {
  const seconds = (max_frames * hop) / sample_rate_hz;
  return `Sound of at most ${seconds} s: a file or the microphone; it is resampled to ${sample_rate_hz} Hz.`;
}

export async function run(model, id, { samples }) {
  const settings = model.task(id),
    { files } = model.base;
  const { hop, max_frames: maxFrames, sample_rate_hz: rate } = settings;
  checkLength(samples, 1, maxFrames * hop, rate);
  const begin = performance.now();
  const { filters, window } = tensors(files[FILTERS], `base/${FILTERS}`);
  const features = logMel(samples, framesOf(settings, samples.length), { filters, window, hop, maxFrames });
  const heard = await model.run({ features }, id, "encoder");
  const most = Math.min(
    settings.max_tokens,
    settings.tokens_at_least + Math.ceil(settings.tokens_per_s * (samples.length / rate)),
  );
  const tokens = await greedy(settings, most, (tokens, states) => step(model, id, tokens, heard, states));
  return { took: performance.now() - begin, text: textOf(files[VOCABULARY], tokens) };
}

/** The context of a clip, in frames. */
function framesOf({ hop, max_frames, context, multiple_frames, floor_frames }, nSamples) {
  const frames = Math.max(Math.ceil(nSamples / hop), floor_frames);
  return context === "full" ? max_frames : Math.min(Math.ceil(frames / multiple_frames) * multiple_frames, max_frames);
}

async function greedy(settings, most, step) {
  const { start, languages, language, after, end, suppressed, begin_suppressed } = settings;
  const codes = Object.values(languages).sort((a, b) => a - b);
  const spoken = !codes.length
    ? []
    : [language !== null ? languages[language] : best((await step([start])).scores, (token) => codes.includes(token))];
  let { scores, states } = await step([start, ...spoken, ...after]);
  const tokens = [],
    never = new Set(suppressed),
    notFirst = new Set([...suppressed, ...begin_suppressed]);
  for (;;) {
    const banned = tokens.length ? never : notFirst;
    const token = best(scores, (one) => !banned.has(one));
    if (token === end) return tokens;
    tokens.push(token);
    if (tokens.length >= most) return tokens;
    ({ scores, states } = await step([token], states));
  }
}

/** The scores after the last of these tokens, and the cache that has them. */
async function step(model, id, tokens, heard, states = {}) {
  const { graph } = model.networks.decoder;
  const given = {
    tokens: { dtype: "I64", shape: [1, tokens.length], data: BigInt64Array.from(tokens, BigInt) },
    ...heard,
    ...states,
  };
  const found = await model.run(given, id, "decoder");
  const { shape, data } = found[graph.outputs[0].name];
  return {
    scores: data.subarray(data.length - shape[2]),
    states: Object.fromEntries(graph.states.map(({ input, output }) => [input, found[output]])),
  };
}

function best(scores, allowed) {
  let found = -1;
  for (let i = 0; i < scores.length; i++) if (allowed(i) && (found < 0 || scores[i] > scores[found])) found = i;
  return found;
}

// As audiolora.edge.whisper has it: Python's \d, and the white space that its strip() takes off.
const TIMESTAMP = /<\|\p{Nd}+\.\p{Nd}+\|>/gu,
  BLANKS = "[\\t-\\r\\x1c- \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]+",
  ENDS = new RegExp(`^${BLANKS}|${BLANKS}$`, "g");

/** A token's bytes are the code points of its string in the vocabulary; timestamps are dropped from the text. */
function textOf(vocabulary, tokens) {
  const pieces = JSON.parse(new TextDecoder().decode(vocabulary));
  const bytes = tokens.flatMap((token) => Array.from(pieces[token] ?? "", (letter) => letter.charCodeAt(0)));
  const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
  return text.replace(TIMESTAMP, "").replace(ENDS, "");
}
