// History to forecast as audiolora.edge does it: z = (v - location) / scale by window and channel, in float64, handed
// to the network as float32; the forecast goes back the same way.

/** The columns that the network sees, in order. */
export function channels(settings) {
  return ["y", ...settings.past, ...settings.known];
}

/** The network's input as a tensor, and how its output goes back to y's unit. device: of a scaler by device. */
export function prepare(settings, columns, device) {
  const names = channels(settings),
    { lookback, horizon } = settings;
  const steps = columns.y.length;
  const values = new Float32Array(names.length * lookback);
  let ofY;
  names.forEach((name, c) => {
    const wanted = steps + (settings.known.includes(name) ? horizon : 0);
    const column = columns[name];
    if (!column || column.length !== wanted || steps < lookback) {
      throw new Error(
        `${name}: ${column?.length ?? 0} values, and ${wanted} are needed: y and past covariates up to now, at least ` +
          `${lookback} steps, known ones ${horizon} steps further`,
      );
    }
    const window = Float32Array.from(column.slice(-lookback));
    if (!window.every(Number.isFinite))
      throw new Error(`${name}: the last ${lookback} values have a gap; fill it first`);
    const { location, scale } = statistics(settings, name, window, device);
    if (c === 0) ofY = { location, scale };
    window.forEach((value, i) => (values[c * lookback + i] = (value - location) / scale));
  });
  return {
    input: { shape: [1, names.length, lookback], dtype: "F32", data: values },
    back: (z) => z * ofY.scale + ofY.location,
  };
}

/** The forecast in y's unit: rows of one value, or of one for each quantile, ascending. */
export function finish(settings, output, back) {
  const width = settings.quantiles.length || 1;
  return Array.from({ length: settings.horizon }, (_, i) => {
    const row = Array.from(output.data.subarray(i * width, (i + 1) * width), Number);
    return row.sort((a, b) => a - b).map(back);
  });
}

function statistics({ scaler }, name, window, device) {
  if (scaler.unscaled.includes(name)) return { location: 0, scale: 1 };
  if (scaler.kind === "window") {
    const mean = (of) => window.reduce((sum, value) => sum + of(value), 0) / window.length;
    const location = mean((v) => v);
    const spread = Math.sqrt(mean((v) => (v - location) ** 2));
    const floored = Math.max(spread, scaler.floor * Math.sqrt(mean((v) => v * v)));
    return { location, scale: floored > 0 ? floored : 1 };
  }
  const known = Object.keys(scaler.devices);
  const pair = scaler.devices[device ?? (known.length === 1 ? known[0] : undefined)]?.[name];
  if (!pair)
    throw new Error(
      `the scaler knows ${known.join(", ") || "no device"}, and ${device ?? "no device"} (${name}) was asked for`,
    );
  return { location: pair[0], scale: pair[1] };
}
