// A bundle's task "forecast": a history from a CSV, its continuation from the network.

import { distinct, numbers, parse, where } from "../table.js";
import { CALENDAR, calendar } from "./calendar.js";
import { channels, finish, prepare } from "./scaling.js";

const SERIES = "unique_id",
  STAMP = "ds";
const SHOWN = 3; // horizons of history in the chart

export const kind = "forecast";
export const accepts = ".csv,text/csv";

export function hint(settings) {
  const more = [...settings.past, ...settings.known];
  const known = settings.known.length ? `; ${settings.known.join(", ")} ${settings.horizon} rows further than y` : "";
  const columns = more.length ? `columns y, ${more.join(", ")}` : "a column y";
  return (
    `A CSV with ${columns}, the last ${settings.lookback} rows or more${known}. ` +
    `With a column ${SERIES} it may hold several series, ${STAMP} names the rows.`
  );
}

/** {name, series: [ids], table} */
export async function read(file) {
  const table = parse(await file.text());
  return { name: file.name, table, series: distinct(table, SERIES) };
}

/** The forecast of one series: {took, rows}. */
export async function run(model, id, { table, series, chosen }) {
  const settings = model.task(id);
  const columns = columnsOf(settings, series.length ? where(table, SERIES, chosen) : table);
  const device = chosen in (settings.scaler.devices ?? {}) ? chosen : undefined;
  const { input, back } = prepare(settings, columns, device);
  const [name] = model.base.manifest.graphs.base.inputs.map((spec) => spec.name);
  const begin = performance.now();
  const found = await model.run({ [name]: input }, id);
  const took = performance.now() - begin;
  return { took, rows: finish(settings, Object.values(found)[0], back) };
}

/** What to show of results by adapter, of which one is chosen. */
export function show(model, id, { name, table, series, chosen }, results) {
  const settings = model.task(id),
    { horizon, quantiles } = settings;
  const one = series.length ? where(table, SERIES, chosen) : table;
  const y = columnsOf(settings, one).y;
  const past = y.slice(-SHOWN * horizon);
  const middle = quantiles.length
    ? quantiles.reduce((best, q, i) => (Math.abs(q - 0.5) < Math.abs(quantiles[best] - 0.5) ? i : best), 0)
    : 0;
  const line = (rows) => [past.at(-1), ...rows.map((row) => row[middle])];
  const rows = results.get(id).rows;
  const others = [...results].filter(([other]) => other !== id);
  const lines = [
    { label: "history", kind: "history", start: 1 - past.length, values: Array.from(past) },
    ...others.map(([other, result]) => ({
      label: other ?? "base",
      kind: other === null ? "base" : "other",
      start: 0,
      values: line(result.rows),
    })),
    { label: id ?? "base", kind: "active", start: 0, values: line(rows) },
  ];
  const bands =
    quantiles.length > 1
      ? [{ kind: "active", start: 1, low: rows.map((row) => row[0]), high: rows.map((row) => row.at(-1)) }]
      : [];
  const label = (step) => (step > 0 ? `+${step}` : step === 0 ? "now" : `\u2212${-step}`);
  const now = one.names.includes(STAMP) ? ` after ${one.rows[y.length - 1][one.names.indexOf(STAMP)]}` : "";
  return {
    title: `${series.length ? chosen : name}: the next ${horizon} steps${now}`,
    chart: { lines, bands, now: 0, label, summary: `History and forecast with ${id ?? "the base"}` },
    table: {
      names: ["step", ...(quantiles.length ? quantiles.map((q) => `${settings.name} ${q}`) : [settings.name])],
      rows: rows.map((row, i) => [i + 1, ...row]),
    },
  };
}

/**
 * y and covariates as `prepare` wants them: trailing rows without y are those of the known ones beyond now. What the
 * network reads of the calendar and the file has not is computed from the last stamp.
 */
function columnsOf(settings, table) {
  const { known, horizon, step_s: step, time_zone: zone } = settings;
  const ofY = nameOfY(settings, table);
  const y = numbers(table, ofY);
  const steps = y.findLastIndex((value) => !Number.isNaN(value)) + 1;
  const columns = { y: y.slice(0, steps) };
  const filled = CALENDAR.filter((name) => known.includes(name) && !table.names.includes(name));
  if (filled.length && steps && zone && step && table.names.includes(STAMP)) {
    Object.assign(columns, calendar(table.rows[steps - 1][table.names.indexOf(STAMP)], steps, horizon, step, zone));
  }
  const missing = channels(settings).filter((name) => !(name in columns) && !table.names.includes(name));
  if (missing.length)
    throw new Error(`this file has no column ${missing.join(", ")}; it has ${table.names.join(", ")}`);
  for (const name of [...settings.past, ...known])
    columns[name] ??= numbers(table, name).slice(0, steps + (known.includes(name) ? horizon : 0));
  return columns;
}

/** "y", or the one column of numbers of a file for a network that sees nothing else. */
function nameOfY(settings, { names }) {
  const others = names.filter((name) => name !== SERIES && name !== STAMP);
  if (names.includes("y")) return "y";
  if (channels(settings).length === 1 && others.length === 1) return others[0];
  throw new Error(`this file has no column y; it has ${names.join(", ")}`);
}
