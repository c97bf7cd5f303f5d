// The bar at the bottom: what will come of the draft and when, the quality, and Make video.

import { html } from "../vendor/htm-preact.js";
import { checkSoon, missingOf } from "./checks.js";
import { clipsOf, edit, model, spoken } from "./draft.js";
import { cancel, open } from "./jobs.js";
import { makeVideo, stopSending } from "./making.js";
import { FieldError } from "./parts.js";
import { change, state } from "./store.js";
import { clock, doingOf, fileSize, headlineOf, inLine, isOver, many, PRESET, seconds } from "./words.js";

const NEEDED = { person_image: "a photo of the person", audio: "speech", prompt: "what happens in the first scene" };

const joined = (words) => (words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`);

/** What will come of the draft, in a line. */
function outlook() {
  const { draft, estimate } = state;
  if (!state.models.length) return "Waiting for a worker";
  const missing = missingOf(draft);
  if (missing.length) return `Still needed: ${joined(missing.map((field) => NEEDED[field]))}`;
  const length = estimate?.duration_s ?? spoken(draft), clips = clipsOf(draft);
  const parts = [];
  if (length !== null) parts.push(seconds(length));
  if (clips !== null) parts.push(many(clips, "clip"));
  if (estimate?.queue_position) parts.push(inLine(estimate.queue_position));
  if (estimate?.estimated_finish_at) parts.push(`ready about ${clock(estimate.estimated_finish_at)}`);
  if (state.checking) parts.push("checking…");
  return parts.join(" · ");
}

/** The part of the work, not of the time: that was not measured here. The time stands beside it once it is known. */
function presetText({ id, num_inference_steps: steps, num_computed_steps: computed }) {
  return computed < steps ? `${PRESET[id]} · ${computed} of ${steps} steps` : PRESET[id];
}

function Presets() {
  const offered = (model()?.presets ?? []).filter((preset) => preset.id !== "parity");
  if (offered.length < 2) return null;
  const chosen = state.draft.settings.preset ?? "exact";
  const set = (event) => { edit((draft) => { draft.settings.preset = event.target.value; }); checkSoon(); };
  return html`<label class="inline"><span class="visually-hidden">Quality</span><select data-field="preset" onChange=${set}>
    ${offered.map((preset) => html`<option value=${preset.id} selected=${preset.id === chosen}>${presetText(preset)}</option>`)}
  </select></label>`;
}

function Sending() {
  const { sent, total, waiting } = state.sending;
  const text = waiting ? "No connection. It will be sent again, once." : total && sent >= total ? "Checking…" : total ? `Sending ${fileSize(sent)} of ${fileSize(total)}` : "Sending…";
  return html`<p class="outlook">${text}<progress max="1" value=${total ? sent / total : 0} aria-label="Upload"></progress></p>
    <button type="button" onClick=${stopSending}>Stop</button>`;
}

export function Bar({ job }) {
  if (job) {
    return html`<footer class="bottom" tabindex="-1"><p class="outlook"><b>${headlineOf(job)}</b>${!isOver(job) && html` <span>${doingOf(job)}</span>`}</p>
      ${!isOver(job) && html`<button type="button" onClick=${() => cancel(job.id)}>Cancel</button>`}
      <button type="button" class="primary" onClick=${() => open(null)}>New video</button></footer>`;
  }
  const { warnings = [] } = state.estimate ?? {};
  return html`<footer class="bottom" tabindex="-1">
    ${state.sending ? html`<${Sending} />` : html`
      <div class="outlook"><p>${outlook()}</p>
        ${warnings.map((warning) => html`<p class="warning">${warning.message}</p>`)}
        ${state.draft.unanswered && html`<p class="warning">The last answer was lost. Make video asks for the same one again.</p>`}
        <${FieldError} field="all" /></div>
      <${Presets} />
      <button type="button" class="primary" data-field="make" aria-describedby=${state.errors.all ? "error-all" : undefined} onClick=${makeVideo}>Make video</button>`}
  </footer>`;
}

const DRAFT_TABS = { photos: "Photos", speech: "Speech", scenes: "Scenes", watch: "Watch", videos: "Videos" };
const JOB_TABS = { watch: "Watch", scenes: "Clips", videos: "Videos" };

/** What a phone shows one at a time. */
export const Tabs = ({ job }) => html`<nav class="tabs" aria-label="Parts">${Object.entries(job ? JOB_TABS : DRAFT_TABS).map(([tab, text]) => html`
  <button type="button" key=${tab} aria-current=${state.tab === tab ? "true" : undefined} data-tab=${tab} onClick=${() => change((now) => { now.tab = tab; })}>${text}</button>`)}</nav>`;
