// The draft: what the next video will be made of. It outlives a reload, and its idempotency key belongs to its bytes.

import { keep, kept } from "./keep.js";
import { decoded, wavOf } from "./sound.js";
import { change, state } from "./store.js";

export const emptyDraft = () => ({
  photos: { person_image: null, product_image: null },
  speech: null,      // { file, name, seconds, outline, from, to }
  typed: null,       // { text, voice }: what is said instead of a recording, where the server can speak
  clipsTold: null,   // how many clips the server counted in a speech that this browser cannot measure
  pose: null,        // the file of a pose video, of a job that is used again
  prompts: [""],     // by clip; an empty one reads "as before"
  settings: {},      // only what differs from the checkpoint's own
  key: null,         // of the request as it is now; made when it is first sent
  unanswered: false, // it was sent, and no answer came
});

const tabs = new BroadcastChannel("draft");
let saving = null;

async function save() {
  saving = null;
  try {
    await keep("draft", state.draft);
    tabs.postMessage("saved");
  } catch {
    // A private window without storage: the draft lives as long as the page.
  }
}

const later = () => { clearTimeout(saving); saving = setTimeout(save, 300); };
addEventListener("pagehide", () => { if (saving !== null) { clearTimeout(saving); save(); } });

/** Change what will be sent. The old key belongs to other bytes, so it goes. */
export function edit(mutate) {
  change((now) => {
    mutate(now.draft);
    Object.assign(now.draft, { key: null, unanswered: false });
    now.estimate = null;
  });
  later();
}

/** Remember that the draft is on its way, before it is. */
export async function note(mutate) {
  change((now) => mutate(now.draft));
  await save();
}

/** The draft as it was left. Another tab's changes are taken over, unless this is the one that is worked in. */
export async function restore() {
  const read = async () => {
    const found = await kept("draft").catch(() => null);
    return found ? { ...emptyDraft(), ...found } : null;
  };
  const found = await read();
  change((now) => { now.draft = found ?? emptyDraft(); });
  tabs.onmessage = async () => {
    const other = !document.hasFocus() && saving === null && !state.sending ? await read() : null;
    if (other) change((now) => { now.draft = other; now.estimate = null; });
  };
}

export function idempotencyKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Seconds of speech that will be used. */
export const spoken = (draft) => (draft.speech?.seconds ? draft.speech.to - draft.speech.from : null);

export const model = () => state.models.find((one) => one.id === state.draft.settings.model)
  ?? state.models.find((one) => one.default) ?? state.models[0];

/** Seconds of one clip: the checkpoint says it. */
export const clipSeconds = () => (model() ? model().frames_per_clip / model().fps : null);

/** How many clips the video will have; null while that cannot be known. */
export function clipsOf(draft) {
  if (state.estimate) return state.estimate.params.num_clips;
  if (spoken(draft) === null || !clipSeconds()) return draft.clipsTold;
  const frames = Math.max(1, Math.round(spoken(draft) * model().fps));
  const whole = Math.floor(frames / model().frames_per_clip);
  return whole && frames - whole * model().frames_per_clip <= (state.limits?.max_dropped_frames ?? 0) ? whole : Math.ceil(frames / model().frames_per_clip);
}

/** Width and height of the frame, [9, 16] while no model is known. */
export function frameOf(draft) {
  const size = draft.settings.size ?? model()?.sizes[0] ?? "9x16";
  return size.split("x").map(Number);
}

/** The prompts as sent: one per clip, each empty one as the one before. Nothing is left out, nothing moves. */
export function promptsOf(draft) {
  const used = draft.prompts.slice(0, clipsOf(draft) ?? draft.prompts.length).map((text) => text.trim());
  const last = used.findLastIndex(Boolean);
  return used.slice(0, last + 1).map((_, i) => used.slice(0, i + 1).findLast(Boolean) ?? "");
}

/** The request as a form. */
export async function formOf(draft) {
  const form = new FormData();
  for (const [name, photo] of Object.entries(draft.photos)) if (photo) form.append(name, photo.file, photo.name);
  if (draft.speech) await addRecording(form, draft.speech);
  else { form.append("speech_text", draft.typed.text); form.append("voice", draft.typed.voice); }
  if (draft.pose) form.append("pose_video", draft.pose);
  for (const prompt of promptsOf(draft)) form.append("prompt", prompt);
  for (const [field, value] of Object.entries(draft.settings)) if (value !== "") form.append(field, value);
  return form;
}

async function addRecording(form, { file, name, from, to, seconds }) {
  const trimmed = seconds !== null && (from > 0 || to < seconds);
  const speech = trimmed ? wavOf((await decoded(file)).buffer, "speech.wav", from, to) : file;
  form.append("audio", speech, trimmed ? "speech.wav" : name);
}
