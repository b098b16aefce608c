// Whisper's log-mel features, in float64 as audiolora.edge makes them.

const FLOOR = 1e-10,
  RANGE = 8;

/** The first nFrames columns as a tensor (1, n_mels, nFrames). filters (n_fft / 2 + 1, n_mels), window (n_fft,). */
export function logMel(samples, nFrames, { filters, window, hop, maxFrames }) {
  const nFft = window.data.length,
    [bins, mels] = filters.shape;
  const computed = Math.min(nFrames + 1, maxFrames); // the last window reaches past its hop
  const padded = new Float64Array(computed * hop);
  padded.set(samples);
  const mirrored = (i) => padded[i < 0 ? -i : i >= padded.length ? 2 * padded.length - 2 - i : i];
  const spectrum = powers(nFft, bins);
  const levels = new Float64Array(computed * mels),
    frame = new Float64Array(nFft);
  let most = -Infinity;
  for (let t = 0; t < computed; t++) {
    for (let n = 0; n < nFft; n++) frame[n] = mirrored(t * hop + n - nFft / 2) * window.data[n];
    const power = spectrum(frame);
    for (let m = 0; m < mels; m++) {
      let sum = 0;
      for (let k = 0; k < bins; k++) sum += filters.data[k * mels + m] * power[k];
      levels[t * mels + m] = Math.log10(Math.max(sum, FLOOR));
      most = Math.max(most, levels[t * mels + m]);
    }
  }
  const data = new Float32Array(mels * nFrames);
  for (let m = 0; m < mels; m++)
    for (let t = 0; t < nFrames; t++) data[m * nFrames + t] = (Math.max(levels[t * mels + m], most - RANGE) + 4) / 4;
  return { shape: [1, mels, nFrames], dtype: "F32", data };
}

/** The power spectrum of a real frame by the definition; its two halves are folded, cosines and sines are a table. */
function powers(nFft, bins) {
  const angle = (n) => (2 * Math.PI * n) / nFft;
  const cos = Float64Array.from({ length: nFft }, (_, n) => Math.cos(angle(n)));
  const sin = Float64Array.from({ length: nFft }, (_, n) => Math.sin(angle(n)));
  const half = nFft / 2,
    even = new Float64Array(half),
    odd = new Float64Array(half),
    power = new Float64Array(bins);
  return (frame) => {
    for (let n = 1; n < half; n++) {
      even[n] = frame[n] + frame[nFft - n];
      odd[n] = frame[n] - frame[nFft - n];
    }
    for (let k = 0; k < bins; k++) {
      let real = frame[0] + (k % 2 ? -frame[half] : frame[half]),
        imaginary = 0;
      for (let n = 1, at = k; n < half; n++, at += k) {
        if (at >= nFft) at -= nFft;
        real += even[n] * cos[at];
        imaginary += odd[n] * sin[at];
      }
      power[k] = real * real + imaginary * imaginary;
    }
    return power;
  };
}
