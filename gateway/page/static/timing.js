// Where the time of an answer went: the gateway's Server-Timing.

/**
 * Reads a Server-Timing value: {stages: {fetch: 1.2, ...}, images: [{source, ...} or null, ...]}.
 *
 * Durations are milliseconds. What cannot be read is passed over.
 */
export function parseTiming(value) {
  const stages = {};
  const images = [];
  for (const { name, dur, desc } of metrics(value)) {
    const image = /^image-(\d{1,3})$/.exec(name);
    if (image && desc !== undefined) images[image[1] - 1] = parseImage(desc);
    else if (Number.isFinite(dur) && dur >= 0) stages[name] = dur;
  }
  return { stages, images: Array.from(images, (image) => image ?? null) };
}

const METRIC = /([\w.-]+)((?:\s*;\s*[\w-]+\s*(?:=\s*(?:"(?:\\.|[^"\\])*"|[^\s;,"]*))?)*)/g;
const PARAMETER = /([\w-]+)\s*=\s*(?:"((?:\\.|[^"\\])*)"|([^\s;,"]*))/g;

function* metrics(value) {
  for (const [, name, parameters] of value.matchAll(METRIC)) {
    const metric = { name };
    for (const [, key, quoted, plain] of parameters.matchAll(PARAMETER)) {
      metric[key] ??= quoted?.replace(/\\(.)/g, "$1") ?? plain;
    }
    yield { ...metric, dur: metric.dur ? Number(metric.dur) : undefined };
  }
}

// "encoded 3x2+1 1200x800": where from, the grid and its thumbnail, pixels of the upright picture.
const IMAGE = /^(\w+)(?: (\d+)x(\d+)(\+1)?(?: (\d+)x(\d+))?)?/;

function parseImage(desc) {
  const [, source, columns, rows, thumbnail, width, height] = IMAGE.exec(desc) ?? [];
  if (!source) return null;
  if (!columns) return { source };
  const grid = { column_count: Number(columns), row_count: Number(rows) };
  const pixels = width ? { width: Number(width), height: Number(height) } : {};
  return { source, ...grid, has_thumbnail: Boolean(thumbnail), ...pixels };
}
