// Sound as numbers: decoding, the outline that a waveform shows, and WAV files.

const OUTLINE_PER_SECOND = 50;

/** { buffer, seconds, outline } of a sound file; null if this browser cannot decode it. */
export async function decoded(file) {
  const context = new OfflineAudioContext(1, 1, 48000);
  try {
    const buffer = await context.decodeAudioData(await file.arrayBuffer());
    return { buffer, seconds: buffer.duration, outline: outlineOf(buffer) };
  } catch {
    return null;
  }
}

/** The loudest sample of each fiftieth of a second, 0 to 1. */
function outlineOf(buffer) {
  const samples = buffer.getChannelData(0);
  const step = buffer.sampleRate / OUTLINE_PER_SECOND;
  return Float32Array.from({ length: Math.max(1, Math.ceil(samples.length / step)) }, (_, i) => {
    let most = 0;
    const end = Math.min(samples.length, Math.floor((i + 1) * step));
    for (let at = Math.floor(i * step); at < end; at += 4) most = Math.max(most, Math.abs(samples[at]));
    return most;
  });
}

/** The part of an outline between two seconds. */
export const outlineBetween = (outline, from, to) =>
  outline.subarray(Math.floor(from * OUTLINE_PER_SECOND), Math.ceil(to * OUTLINE_PER_SECOND));

/** Seconds `from` to `to` of a decoded sound as a WAV file of one or two channels, 16 bit. */
export function wavOf(buffer, name, from = 0, to = buffer.duration) {
  const rate = buffer.sampleRate, channels = Math.min(2, buffer.numberOfChannels);
  const parts = Array.from({ length: channels }, (_, i) =>
    buffer.getChannelData(i).subarray(Math.round(from * rate), Math.round(to * rate)));
  const bytes = parts[0].length * channels * 2;
  const view = new DataView(new ArrayBuffer(44 + bytes));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + bytes, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, channels, true);
  view.setUint32(24, rate, true); view.setUint32(28, rate * channels * 2, true);
  view.setUint16(32, channels * 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, bytes, true);
  let at = 44;
  for (let i = 0; i < parts[0].length; i++) {
    for (const part of parts) {
      view.setInt16(at, Math.max(-1, Math.min(1, part[i])) * 0x7fff, true);
      at += 2;
    }
  }
  return new File([view], name, { type: "audio/wav" });
}
