// The page: what was chosen, what runs, what is shown. A refusal is told, and changes nothing of what runs.

import { decode, record } from "./audio.js";
import { inFiles, onServer, publicKey } from "./bundle.js";
import { draw } from "./chart.js";
import { Model } from "./model.js";
import * as ctc from "./tasks/ctc.js";
import * as forecast from "./tasks/forecast.js";
import * as plain from "./tasks/plain.js";
import * as whisper from "./tasks/whisper.js";

const TASKS = [forecast, ctc, whisper, plain];

const at = (id) => document.getElementById(id);
const state = { model: null, task: null, active: null, input: null, results: new Map(), stop: null };
let last = Promise.resolve();

/** One thing after the other; what goes wrong is told where it can be seen. */
function then(act) {
  last = last.then(async () => {
    document.body.ariaBusy = "true";
    let said = "";
    try {
      await act();
    } catch (error) {
      said = error.message;
    }
    at("error").textContent = said;
    at("error").hidden = !said;
    document.body.ariaBusy = "false";
  });
  return last;
}

async function open(source) {
  const begin = performance.now();
  const check = !at("unsigned").checked,
    pem = at("key").value.trim();
  const trust = { check, key: check && pem ? await publicKey(pem) : null };
  const model = await Model.open(source, trust);
  const kind = model.task(null)?.kind ?? null;
  const task = TASKS.find((one) => one.kind === kind);
  if (!task) {
    const kinds = TASKS.map((one) => one.kind ?? "plain tensors").join(", ");
    throw new Error(`this bundle is for ${kind}, and this page runs ${kinds} alone`);
  }
  const off = await model.selftest(null);
  const ids = await source.adapters();
  await state.model?.release();
  Object.assign(state, { model, task, active: null, input: null, results: new Map() });
  const { id, form } = model.base.manifest;
  const signed = trust.key ? "signed by this key" : check ? "not signed" : "its signature not looked at";
  const took = Math.round(performance.now() - begin);
  at("status").textContent =
    `${id} (${form}): every file verified, ${signed}; self-test off torch's by ${off.toExponential(1)}; ${took} ms`;
  showInputs();
  showAdapters(ids);
  at("rest").hidden = false;
  at("result").hidden = true;
}

function showInputs() {
  const { model, task } = state;
  at("hint").textContent = task.hint(model.task(null), model);
  at("stored").hidden = !task.stored;
  const hears = task.hears?.(model) ?? false;
  at("record").hidden = !hears || !navigator.mediaDevices;
  at("rate-label").hidden = !hears || Boolean(model.task(null)?.sample_rate_hz);
  at("file").accept = [task.read && task.accepts, hears && "audio/*"].filter(Boolean).join();
  at("series-label").hidden = true;
  at("opened").textContent = "";
}

function showAdapters(ids) {
  at("adapters").replaceChildren(
    ...[null, ...ids].map((id) => {
      const button = document.createElement("button");
      Object.assign(button, {
        type: "button",
        textContent: id ?? "none (the base)",
        onclick: () => then(() => choose(id)),
      });
      button.dataset.id = id ?? "";
      return button;
    }),
  );
  press();
}

function press() {
  for (const button of at("adapters").children) button.ariaPressed = String(button.dataset.id === (state.active ?? ""));
}

/** Take another adapter: loaded when it is first asked for, and then at hand. */
async function choose(id) {
  const { model } = state;
  if (id !== null && !model.adapters.has(id)) await model.load(id);
  state.active = id;
  press();
  if (state.input) await run();
}

async function take(input) {
  Object.assign(state, { input, results: new Map() });
  at("opened").textContent = input.name;
  at("series-label").hidden = !(input.series?.length > 1);
  if (input.series?.length) {
    at("series").replaceChildren(...input.series.map((name) => new Option(name)));
    input.chosen = input.series[0];
  }
  await run();
}

async function run() {
  const { model, task, active, input, results } = state;
  const result = await task.run(model, active, input);
  results.set(active, result);
  show(result);
}

function show(result) {
  const { model, task, active, input, results } = state;
  const { title, chart, text = "", table } = task.show(model, active, input, results);
  at("result").hidden = false;
  at("title").textContent = title;
  at("took").textContent =
    `${result.took < 10 ? result.took.toFixed(1) : Math.round(result.took)} ms with ${active ?? "the base"}`;
  at("text").textContent = text;
  at("chart").hidden = !chart;
  if (chart) draw(at("chart"), chart);
  const line = (cells, tag) => {
    const row = document.createElement("tr");
    row.append(...cells.map((cell) => Object.assign(document.createElement(tag), { textContent: String(cell) })));
    return row;
  };
  at("numbers-title").textContent = table.title ?? "Numbers";
  at("numbers").replaceChildren(line(table.names, "th"), ...table.rows.map((cells) => line(cells, "td")));
}

async function sound(blob) {
  const { model, task } = state;
  const rate = model.task(null)?.sample_rate_hz ?? Number(at("rate").value);
  await take(task.heard(await decode(blob, rate), model));
}

/** What was chosen; the field forgets it, so that the same file may be chosen again. */
function taken(field) {
  const files = [...field.files];
  field.value = "";
  return files;
}

at("open").onsubmit = (event) => {
  event.preventDefault();
  const ids = at("ids")
    .value.split(",")
    .map((id) => id.trim())
    .filter(Boolean);
  then(() => open(onServer(at("url").value, ids)));
};
at("folder").onchange = ({ target }) => {
  const files = taken(target);
  if (files.length) then(() => open(inFiles(files)));
};
at("stored").onclick = () => then(() => take(state.task.stored(state.model)));
at("file").onchange = ({ target }) => {
  const [file] = taken(target);
  if (!file) return;
  const { task, model } = state;
  const isSound = task.hears?.(model) && (!task.read || /^(audio|video)\//.test(file.type));
  then(async () => (isSound ? sound(file) : take(await task.read(file, model))));
};
at("series").onchange = ({ target }) =>
  then(async () => {
    state.input.chosen = target.value;
    state.results = new Map();
    await run();
  });
at("record").onclick = () =>
  then(async () => {
    if (!state.stop) {
      state.stop = await record();
      at("record").textContent = "Stop";
      return;
    }
    const blob = await state.stop();
    state.stop = null;
    at("record").textContent = "Record";
    await sound(blob);
  });
addEventListener("resize", () => state.results.has(state.active) && show(state.results.get(state.active)));

const asked = new URLSearchParams(location.search);
at("ids").value = asked.get("adapters") ?? "";
if (asked.has("bundle")) {
  at("url").value = asked.get("bundle");
  at("open").requestSubmit();
}
