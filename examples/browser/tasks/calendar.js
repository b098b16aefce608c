// The columns of the calendar over a window and what comes after it, by the clock of the devices' time zone.

export const CALENDAR = ["hour_sin", "hour_cos", "weekday_sin", "weekday_cos"];

const DAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/** {name: values}, past steps up to the stamp, it included, and `ahead` after it. A stamp without a zone is UTC. */
export function calendar(stamp, past, ahead, stepS, timeZone) {
  const iso = stamp.trim().replace(" ", "T");
  const end = Date.parse(/T.*(Z|[+-]\d\d:?\d\d)$/.test(iso) ? iso : `${iso.includes("T") ? iso : `${iso}T00:00`}Z`);
  if (Number.isNaN(end)) throw new Error(`${stamp}: no time; write 2024-01-31T06:00`);
  const format = new Intl.DateTimeFormat("en-US", {
    timeZone,
    hourCycle: "h23",
    weekday: "short",
    hour: "numeric",
    minute: "numeric",
    second: "numeric",
  });
  const found = Object.fromEntries(CALENDAR.map((name) => [name, []]));
  for (let i = 1 - past; i <= ahead; i++) {
    const part = Object.fromEntries(
      format.formatToParts(end + i * stepS * 1000).map(({ type, value }) => [type, value]),
    );
    const day = (Number(part.hour) + Number(part.minute) / 60 + Number(part.second) / 3600) / 24;
    const turns = { hour: 2 * Math.PI * day, weekday: (2 * Math.PI * (DAYS.indexOf(part.weekday) + day)) / 7 };
    for (const [name, turn] of Object.entries(turns)) {
      found[`${name}_sin`].push(Math.sin(turn));
      found[`${name}_cos`].push(Math.cos(turn));
    }
  }
  return found;
}
