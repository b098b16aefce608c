// Sound as samples in [-1, 1], one channel, at the rate that a network hears: from a file or from the microphone.

/** {samples, rate, seconds} of a file that the browser can decode; it resamples, and channels are averaged. */
export async function decode(blob, rate) {
  const context = new OfflineAudioContext(1, 1, rate);
  let buffer;
  try {
    buffer = await context.decodeAudioData(await blob.arrayBuffer());
  } catch {
    throw new Error(`${blob.name ?? "this recording"}: no sound that this browser can decode`);
  }
  const samples = new Float32Array(buffer.length);
  for (let c = 0; c < buffer.numberOfChannels; c++) {
    buffer.getChannelData(c).forEach((value, i) => (samples[i] += value / buffer.numberOfChannels));
  }
  return { samples, rate, seconds: samples.length / rate };
}

/** Begin to record; the promise's function stops and gives a blob for `decode`. */
export async function record() {
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false },
  });
  const recorder = new MediaRecorder(stream),
    parts = [];
  recorder.ondataavailable = ({ data }) => parts.push(data);
  const stopped = new Promise((resolve) => (recorder.onstop = resolve));
  recorder.start();
  return async () => {
    recorder.stop();
    await stopped;
    stream.getTracks().forEach((track) => track.stop());
    return new Blob(parts, { type: recorder.mimeType });
  };
}
