// Taking files into the draft: chosen, dropped, pasted or recorded.

import { checkSoon } from "./checks.js";
import { edit } from "./draft.js";
import { kindOfFile, readPhoto, readSpeech } from "./files.js";
import { stopSpeech } from "./player.js";
import { change, say, state } from "./store.js";
import { kindRefused } from "./words.js";

const turns = {};

/** The result of reading a file, unless another one was chosen for the same place meanwhile. */
async function read(field, work) {
  const turn = turns[field] = (turns[field] ?? 0) + 1;
  const result = await work();
  if (turns[field] !== turn) return;
  if (result.error) return change((now) => { now.errors = { ...now.errors, [field]: result.error }; });
  edit((draft) => {
    if (field === "audio") Object.assign(draft, { speech: result.speech, typed: null, clipsTold: null });
    else draft.photos[field] = result.photo;
  });
  change((now) => { const { [field]: _, ...others } = now.errors; now.errors = others; });
  say(`${field === "audio" ? "Speech" : field === "product_image" ? "Product photo" : "Photo of the person"} added`);
  checkSoon();
}

export const takePhoto = (field, file) => read(field, () => readPhoto(file, field, state.limits?.files));
export const takeSpeech = (file) => { stopSpeech(); return read("audio", () => readSpeech(file, state.limits?.files)); };

/** Files that were dropped or pasted: each goes where it fits. `field` is the card that it was dropped on. */
export async function takeFiles(files, field = null) {
  for (const file of files) {
    const kind = await kindOfFile(file);
    if (field === "audio" || (kind === "audio" && !field)) await takeSpeech(file);
    else if (field) await takePhoto(field, file);
    else if (kind === "image") await takePhoto(state.draft.photos.person_image ? "product_image" : "person_image", file);
    else change((now) => { now.toast = { text: `${file.name || "This"}: ${kindRefused("person_image")}` }; });
  }
}
