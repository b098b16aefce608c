// A table from a CSV file: comma, semicolon or tab, quotes as in RFC 4180, names in the first line.

/** {names, rows}: the cells as text. */
export function parse(text) {
  const body = text.replace(/^\uFEFF/, "");
  const [first] = body.split(/\r?\n/, 1);
  const comma = [",", ";", "\t"].reduce((best, mark) =>
    first.split(mark).length > first.split(best).length ? mark : best,
  );
  const lines = [[]];
  let cell = "",
    quoted = false;
  for (let i = 0; i < body.length; i++) {
    const c = body[i];
    if (quoted) {
      if (c !== '"') cell += c;
      else if (body[i + 1] === '"') cell += body[++i];
      else quoted = false;
    } else if (c === '"' && cell === "") quoted = true;
    else if (c === comma || c === "\n") {
      lines.at(-1).push(cell.replace(/\r$/, ""));
      cell = "";
      if (c === "\n") lines.push([]);
    } else cell += c;
  }
  if (cell !== "" || lines.at(-1).length) lines.at(-1).push(cell.replace(/\r$/, ""));
  while (lines.at(-1)?.every((text) => text.trim() === "")) lines.pop(); // at the end alone: elsewhere it is a gap
  const [names, ...rows] = lines;
  if (!names || !rows.length) throw new Error("this file has no rows; the first line names the columns");
  const odd = rows.findIndex((row) => row.length !== names.length);
  if (odd >= 0)
    throw new Error(`row ${odd + 1} has ${rows[odd].length} cells, and the first line names ${names.length}`);
  return { names: names.map((name) => name.trim()), rows };
}

/** A column's numbers; what is empty or no number is NaN. */
export function numbers({ names, rows }, name) {
  const at = names.indexOf(name);
  return rows.map((row) => (row[at].trim() === "" ? NaN : Number(row[at])));
}

/** The table's rows where the column has this value. */
export function where(table, name, value) {
  const at = table.names.indexOf(name);
  return { names: table.names, rows: table.rows.filter((row) => row[at] === value) };
}

/** The values of a column, each once. */
export function distinct({ names, rows }, name) {
  const at = names.indexOf(name);
  return at < 0 ? [] : [...new Set(rows.map((row) => row[at]))];
}
