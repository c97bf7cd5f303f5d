// The example: everything that a first video needs, in one press.

import { html } from "../vendor/htm-preact.js";
import { change, state } from "./store.js";

async function fill(example) {
  change((now) => { now.fetching = true; });
  try {
    await (await import("./again.js")).tryExample(example);
  } catch (error) {
    change((now) => { now.toast = { text: error.message }; });
  } finally {
    change((now) => { now.fetching = false; });
  }
}

const isEmpty = ({ photos, speech, typed }) => !photos.person_image && !photos.product_image && !speech && !typed;

/** Offered while the draft is empty. */
export function TryExample() {
  const [example] = state.examples;
  if (!example || !isEmpty(state.draft)) return null;
  return html`<button type="button" class="try" disabled=${state.fetching} onClick=${() => fill(example)}>Try the example</button>`;
}
