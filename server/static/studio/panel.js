// Beside the stage: what the draft still needs, or how the open job is doing and what can be done with it.

import { html } from "../vendor/htm-preact.js";
import { clipsOf, promptsOf, spoken } from "./draft.js";
import { focusField } from "./focus.js";
import { linksOf, remove, rename, shareLink } from "./jobs.js";
import { useLinks } from "./links.js";
import { hasMaps, MapSwitch } from "./maps.js";
import { Icon } from "./parts.js";
import { Settings } from "./settings.js";
import { derivingFrom, tryAgain } from "./derive.js";
import { change, state } from "./store.js";
import { age, beginning, doingOf, duration, failureOf, hashOf, headlineOf, isOver, lengthOf, many, nameOf, PRESET, seconds, titleOf } from "./words.js";

// --- the draft

const Step = ({ done, children }) => html`<li class=${done ? "done" : ""}><${Icon} name=${done ? "done" : "add"} />
  <span>${children}</span><span class="visually-hidden">${done ? " (done)" : " (to do)"}</span></li>`;

export function DraftPanel() {
  const { draft } = state;
  const clips = clipsOf(draft);
  const told = promptsOf(draft).filter(Boolean).length;
  return html`<h2>New video</h2>
    <ul class="steps">
      <${Step} done=${draft.photos.person_image}>A photo of the person<//>
      <${Step} done=${draft.photos.product_image}>A photo of the product, if there is one<//>
      <${Step} done=${draft.speech || draft.typed?.text.trim()}>${spoken(draft) === null ? "What is said" : `${seconds(spoken(draft))} of speech`}<//>
      <${Step} done=${draft.prompts[0]?.trim()}>${told && clips ? `What happens in ${many(clips, "scene")}` : "What happens"}<//>
    </ul>
    <${Settings} />`;
}

// --- a job

/** A file name that says what is in it. */
const fileName = (job) => `${beginning(titleOf(job).toLowerCase().replace(/[^\p{L}\p{M}\p{N}]+/gu, "-"), 50).replace(/^-|-$/g, "") || "video"}.mp4`;

async function save(job) {
  try {
    const { video } = await linksOf(job);
    const link = document.createElement("a");
    Object.assign(link, { href: video, download: fileName(job) });
    link.click();
  } catch (error) {
    change((now) => { now.toast = { text: error.message }; });
  }
}

async function copy(text, told) {
  try {
    await navigator.clipboard.writeText(text);
    change((now) => { now.toast = { text: told }; });
  } catch {
    change((now) => { now.copyable = text; }); // not allowed here: shown, to be copied by hand
  }
}

/** Copy a job as a program. Like `again`, loads what few visits need only when it is asked for. */
async function copyProgram(job, name, told) {
  try {
    await copy((await import("./recipes.js"))[name](job), told);
  } catch (error) {
    change((now) => { now.toast = { text: error.message }; });
  }
}

async function share(job) {
  try {
    await copy(await shareLink(job), "Link copied. It works for a day, without a key.");
  } catch (error) {
    change((now) => { now.toast = { text: error.message }; });
  }
}

async function again(job) {
  try {
    await (await import("./again.js")).useAgain(job);
  } catch (error) {
    change((now) => { now.toast = { text: error.message }; });
  }
}

/** The photos and the speech that the job was made from. */
function MadeFrom({ links }) {
  if (!links) return null;
  const { person_image: person, product_image: product, audio } = links.inputs;
  return html`<div class="made-from"><img src=${person} alt="Made from: the person" />${product && html`<img src=${product} alt="Made from: the product" />`}
    <audio src=${audio} controls preload="metadata" aria-label="Made from: the speech"></audio></div>`;
}

const Fact = ({ name, children }) => html`<div><dt>${name}</dt><dd>${children}</dd></div>`;

function Details({ job }) {
  const { params } = job;
  return html`<details class="details"><summary>Details</summary><dl>
    ${!isOver(job) && job.status === "processing" && html`<${Fact} name="Step">${job.step} of ${job.num_steps}<//>`}
    ${job.parent && html`<${Fact} name="Made from">${state.jobs.has(job.parent) ? html`<a href=${hashOf(job.parent)}>${beginning(titleOf(state.jobs.get(job.parent)), 40)}</a>` : "a video that is gone"}<//>`}
    <${Fact} name="Model">${job.model}<//>
    <${Fact} name="Quality">${PRESET[params.preset] ?? params.preset}<//>
    <${Fact} name="Size">${params.width} × ${params.height}<//>
    <${Fact} name="Steps">${params.num_inference_steps}<//>
    <${Fact} name="Guidance">${params.guidance_scale}<//>
    <${Fact} name="Seed">${params.seed}<//>
    ${job.attempts > 1 && html`<${Fact} name="Tries">${job.attempts}<//>`}
    ${job.usage.gpu_seconds > 0 && html`<${Fact} name="Machine time">${duration(job.usage.gpu_seconds)}<//>`}
    ${job.expires_at && html`<${Fact} name="Kept until">${new Date(job.expires_at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })}<//>`}
    ${job.error && html`<${Fact} name="The server says">${job.error.message}<//>`}
    <${Fact} name="Id"><code>${job.id}</code><//>
  </dl></details>`;
}

const longestName = () => state.limits.fields.metadata.additionalProperties.maxLength;

/** The name of a job: the start of its first scene, unless it was given one. It can be changed once the limits are known. */
function Title({ job }) {
  const { renaming } = state;
  if (renaming?.job !== job.id) {
    const start = () => { change((now) => { now.renaming = { job: job.id, title: beginning(titleOf(job), longestName()) }; }); focusField("title"); };
    return html`<p class="title-line" dir="auto">${titleOf(job)}</p>
      <p class="soft">${seconds(lengthOf(job))} · ${many(job.num_clips, "clip")} · ${age(job.created_at)}${state.limits && html` · <button type="button" class="link" data-field="rename" onClick=${start}>Rename</button>`}</p>`;
  }
  const done = async (event) => {
    event.preventDefault();
    change((now) => { now.renaming = null; });
    focusField("rename");
    await rename(job.id, renaming.title.trim());
  };
  const typed = (event) => { const { value } = event.target; change((now) => { now.renaming.title = value; }); };
  const leave = (event) => { if (event.key === "Escape") { change((now) => { now.renaming = null; }); focusField("rename"); } };
  return html`<form class="row" onSubmit=${done}><input data-field="title" aria-label="Name of this video" maxlength=${longestName()} dir="auto" value=${renaming.title}
    onInput=${typed} onKeyDown=${leave} /><button class="primary">Save the name</button></form>`;
}

export function JobPanel({ job }) {
  const over = isOver(job), links = useLinks(job);
  return html`<h2>${headlineOf(job)}</h2>
    <${Title} job=${job} />
    ${!over && html`<progress max="100" value=${job.progress} aria-label="Progress"></progress><p class="doing">${doingOf(job)}</p>`}
    ${["failed", "canceled"].includes(job.status) && html`<p class=${job.status === "failed" ? "error" : "soft"}>${failureOf(job)}</p>`}
    ${job.warnings.map((warning) => html`<p class="warning">${warning.message}</p>`)}
    <div class="actions">
      ${job.status === "succeeded" && html`
        <button type="button" class="primary" onClick=${() => save(job)}>Save</button>
        <button type="button" onClick=${() => share(job)}>Share</button>`}
      ${job.status === "succeeded" ? html`<button type="button" onClick=${() => again(job)}>Use again</button>`
      : over && html`${"parent" in job && html`<button type="button" class="primary" data-field="retry" onClick=${() => tryAgain(job)}>Try again</button>`}
        <button type="button" onClick=${() => again(job)}>Edit</button>`}
    </div>
    ${derivingFrom(job, "retry")?.error && html`<p class="error">${derivingFrom(job, "retry").error}</p>`}
    <div class="actions minor">
      <button type="button" class="link" onClick=${() => copyProgram(job, "asCurl", "Copied as a curl command.")}>Copy as curl</button>
      <button type="button" class="link" onClick=${() => copyProgram(job, "asPython", "Copied as a Python program.")}>Copy as Python</button>
      <button type="button" class="link danger" aria-label=${`Delete: ${nameOf(job)}`} onClick=${() => remove([job.id])}>Delete</button>
    </div>
    ${hasMaps(links) && html`<p><${MapSwitch} /></p>`}
    <${MadeFrom} links=${links} /><${Details} job=${job} />`;
}

export function Copyable() {
  if (!state.copyable) return null;
  const close = () => change((now) => { now.copyable = null; });
  return html`<div class="dialog-place" onKeyDown=${(event) => { if (event.key === "Escape") close(); }}>
    <section class="card dialog" role="dialog" aria-modal="true" aria-label="Copy">
      <textarea readonly aria-label="Text to copy" rows="8" ref=${(area) => area?.select()} value=${state.copyable}></textarea>
      <button type="button" class="primary" onClick=${close}>Close</button>
    </section></div>`;
}
