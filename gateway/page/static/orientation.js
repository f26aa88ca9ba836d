// Which way up a picture is, where the browser does not ask: Chromium turns no WebP file by its Exif,
// and no PNG file whose Exif comes after its pixels. The vision service turns them, as all others.

const WEBP_HEAD_BYTE_COUNT = 21;
const HAS_EXIF = 0x08; // of VP8X's flags
const MAX_CHUNK_COUNT = 4096;
const PNG_END_BYTE_COUNT = 256 * 1024;
const ORIENTATION = 0x0112; // TIFF 6.0's tag

/** Says whether the model sees the picture turned, and the browser does not. */
export async function isTurnedUnseen(blob) {
  try {
    const exif = (await webpExif(blob)) ?? (await latePNGExif(blob));
    return exif !== null && orientation(exif) > 1;
  } catch {
    return false; // The file ends too early.
  }
}

const part = async (blob, from, to) => new DataView(await blob.slice(from, to).arrayBuffer());

const text = (view, from) =>
  String.fromCharCode(...[0, 1, 2, 3].map((i) => view.getUint8(from + i)));

async function webpExif(blob) {
  const head = await part(blob, 0, WEBP_HEAD_BYTE_COUNT);
  const isExtended = text(head, 0) === "RIFF" && text(head, 8) + text(head, 12) === "WEBPVP8X";
  if (!isExtended || !(head.getUint8(20) & HAS_EXIF)) return null;
  for (let i = 0, at = 12; i < MAX_CHUNK_COUNT; i++) {
    const chunk = await part(blob, at, at + 8);
    const size = chunk.getUint32(4, true);
    if (text(chunk, 0) === "EXIF") return part(blob, at + 8, at + 8 + size);
    at += 8 + size + (size % 2);
  }
  return null;
}

async function latePNGExif(blob) {
  if (text(await part(blob, 0, 4), 0) !== "\x89PNG") return null;
  const start = Math.max(0, blob.size - PNG_END_BYTE_COUNT);
  const end = await part(blob, start, blob.size);
  const bytes = new TextDecoder("latin1").decode(end);
  const place = bytes.lastIndexOf("eXIf");
  if (place < bytes.lastIndexOf("IDAT") || place < 4) return null;
  return part(blob, start + place + 4, start + place + 4 + end.getUint32(place - 4));
}

/** Returns the orientation that Exif tells: 1, upright, to 8. */
function orientation(exif) {
  const start = text(exif, 0) === "Exif" ? 6 : 0;
  const isLittle = text(exif, start).startsWith("II");
  const directory = start + exif.getUint32(start + 4, isLittle);
  const count = exif.getUint16(directory, isLittle);
  for (let i = 0, entry = directory + 2; i < count; i++, entry += 12) {
    if (exif.getUint16(entry, isLittle) === ORIENTATION) return exif.getUint16(entry + 8, isLittle);
  }
  return 1;
}
