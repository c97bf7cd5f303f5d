// A job's ingredients as a draft: to change something, and make another video.

import { blobOf } from "./api.js";
import { edit, emptyDraft, model } from "./draft.js";
import { checkSoon } from "./checks.js";
import { readPhoto, readSpeech } from "./files.js";
import { linksOf, open } from "./jobs.js";
import { fieldsOf } from "./recipes.js";
import { change } from "./store.js";

/** Only what differs from the checkpoint's own. The seed is left open: the same one would make the same video. */
function settingsOf(job) {
  const { model: name, seed: _, ...fields } = fieldsOf(job);
  const own = { preset: "exact", fit: "cover", product_scale: 1, size: model()?.sizes[0], ...model()?.defaults };
  const changed = Object.entries(fields).filter(([field, value]) => value !== own[field]);
  return { ...(name === model()?.id ? {} : { model: name }), ...Object.fromEntries(changed.map(([field, value]) => [field, String(value)])) };
}

/** Fill the draft with what a job was made from, and show it. Throws like `blobOf`. */
export async function useAgain(job) {
  const { inputs } = await linksOf(job);
  const file = async (field, name) => (inputs[field] ? new File([await blobOf(inputs[field])], name) : null);
  const [person, product, audio] = await Promise.all([
    file("person_image", "person.png"), file("product_image", "product.png"), file("audio", "speech.wav"),
  ]);
  const photo = async (from, field) => (from ? (await readPhoto(from, field, null)).photo : null);
  const fresh = {
    ...emptyDraft(),
    photos: { person_image: await photo(person, "person_image"), product_image: await photo(product, "product_image") },
    speech: (await readSpeech(audio, null)).speech,
    prompts: [...job.params.prompts],
    settings: settingsOf(job),
  };
  edit((draft) => { Object.assign(draft, fresh); });
  change((now) => { now.errors = {}; now.tab = "photos"; });
  open(null);
  checkSoon();
}
