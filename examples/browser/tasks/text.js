// What tasks of sound to text have in common on the page.

/** Sound as an input of the page. */
export function heard({ samples, seconds }) {
  return { name: `${seconds.toFixed(1)} s of sound`, samples };
}

/** The text, and below it what each adapter wrote. */
export function show(model, id, { name }, results) {
  return {
    title: name,
    chart: null,
    text: results.get(id).text || "(nothing)",
    table: {
      title: "What each adapter wrote",
      names: ["adapter", "text"],
      rows: [...results].map(([other, { text }]) => [other ?? "base", text]),
    },
  };
}

/** Raises where a clip has fewer samples than the network takes, or more. */
export function checkLength(samples, least, most, rate) {
  const s = (n) => `${(n / rate).toFixed(2)} s`;
  if (samples.length < least)
    throw new Error(`this clip lasts ${s(samples.length)}, and the network needs ${s(least)}`);
  if (samples.length > most)
    throw new Error(
      `this clip lasts ${s(samples.length)}, and the network hears ${s(most)} at once; cut it into shorter clips`,
    );
}
