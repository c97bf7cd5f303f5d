// Looks at a file before it is sent: what its first bytes say, how large it is, whether it can be shown.

import { decoded } from "./sound.js";
import { fileSize, kindRefused, speechTooLong, speechTooShort, tooFewPixels, tooManyPixels } from "./words.js";

const LONGEST_DECODED_S = 1800; // decoding takes 23 MB of memory per minute
const METADATA_MS = 3000; // a tab in the background may never be told

const begins = (bytes, text, at = 0) => [...text].every((letter, i) => bytes[at + i] === letter.charCodeAt(0));

/** "image", "audio" or null, by the first bytes, and what the browser calls an MP4's brand. */
function kindOf(bytes) {
  if (begins(bytes, "\x89PNG") || begins(bytes, "\xff\xd8\xff")) return "image";
  if (begins(bytes, "RIFF")) return begins(bytes, "WEBP", 8) ? "image" : begins(bytes, "WAVE", 8) ? "audio" : null;
  if (begins(bytes, "ftyp", 4)) {
    return /^(heic|heix|heim|heis|hevc|avif|avis|mif1|msf1|miaf)/.test(String.fromCharCode(...bytes.slice(8, 12))) ? "image" : "audio";
  }
  const sounds = ["RF64", "BW64", "fLaC", "OggS", "ID3", "\x1a\x45\xdf\xa3", "FORM"];
  if (sounds.some((magic) => begins(bytes, magic)) || ["moov", "mdat", "wide", "free", "skip"].some((box) => begins(bytes, box, 4))) return "audio";
  return bytes[0] === 0xff && (bytes[1] & 0xe0) === 0xe0 ? "audio" : null; // frames of MPEG audio, ADTS
}

/** What dropping or pasting this file means: "image", "audio" or null. */
export async function kindOfFile(file) {
  return kindOf(new Uint8Array(await file.slice(0, 16).arrayBuffer()));
}

const empty = (thing) => `This ${thing} is empty. Choose another one.`;

/** { photo } to keep and show, or { error }. `limits` are the server's, or null while they are not known. */
export async function readPhoto(file, field, limits) {
  if (!file.size) return { error: empty("photo") };
  if (limits && file.size > limits.image_bytes) {
    return { error: `This photo has ${fileSize(file.size)}: at most ${fileSize(limits.image_bytes)}. Choose a smaller one.` };
  }
  if (await kindOfFile(file) !== "image") return { error: kindRefused(field) };
  const photo = { file, name: file.name, width: 0, height: 0 };
  try {
    const bitmap = await createImageBitmap(file);
    Object.assign(photo, { width: bitmap.width, height: bitmap.height });
    bitmap.close();
  } catch {
    return { photo }; // HEIC, say: the server reads what this browser does not
  }
  if (limits && photo.width * photo.height > limits.image_pixels) return { error: tooManyPixels(limits.image_pixels) };
  if (limits && Math.min(photo.width, photo.height) < limits.image_min_side) return { error: tooFewPixels(limits.image_min_side) };
  return { photo };
}

async function secondsOf(file) {
  const player = document.createElement("audio");
  player.preload = "metadata";
  player.src = URL.createObjectURL(file);
  const length = await new Promise((resolve) => {
    player.onloadedmetadata = () => resolve(player.duration);
    player.onerror = () => resolve(NaN);
    setTimeout(() => resolve(NaN), METADATA_MS);
  });
  URL.revokeObjectURL(player.src);
  return length;
}

/** { speech } to keep and show, or { error }. Speech that is too long is kept: it can be trimmed. */
export async function readSpeech(file, limits) {
  if (!file.size) return { error: empty("recording") };
  if (limits && file.size > limits.audio_bytes) {
    return { error: `This recording has ${fileSize(file.size)}: at most ${fileSize(limits.audio_bytes)}. Choose a smaller one.` };
  }
  if (await kindOfFile(file) !== "audio") return { error: kindRefused("audio") };
  const told = await secondsOf(file);
  const sound = told > LONGEST_DECODED_S ? null : await decoded(file);
  const seconds = sound?.seconds ?? (Number.isFinite(told) ? told : null);
  const speech = { file, name: file.name, seconds, outline: sound?.outline ?? null, from: 0, to: seconds };
  if (limits && seconds !== null && seconds < limits.audio_min_seconds) return { error: speechTooShort(limits.audio_min_seconds) };
  if (limits && seconds > limits.audio_seconds && !sound) return { error: speechTooLong(limits.audio_seconds) };
  return { speech };
}
