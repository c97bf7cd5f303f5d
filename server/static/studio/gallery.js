// The gallery: every video there is, newest first, with what it is doing now.

import { blobOf, apiKey } from "./api.js";
import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { loadAll, loadMore, remove, shown } from "./jobs.js";
import { Icon } from "./parts.js";
import { change, state } from "./store.js";
import { age, clipsDone, hashOf, inLine, isOver, lengthOf, nameOf, stateOf, takeOf, titleOf } from "./words.js";

const posters = new Map(); // path → address of a picture that was fetched with the key

async function posterOf(path) {
  if (!apiKey()) return path;
  if (!posters.has(path)) posters.set(path, blobOf(path).then((blob) => URL.createObjectURL(blob)));
  try {
    return await posters.get(path);
  } catch (error) {
    posters.delete(path);
    throw error;
  }
}

function Poster({ job }) {
  const [address, setAddress] = useState(null);
  const path = `/v1/jobs/${job.id}/thumbnail#${clipsDone(job)}`;
  useEffect(() => {
    let current = true;
    posterOf(path).then((found) => { if (current) setAddress(found); }).catch(() => {});
    return () => { current = false; };
  }, [path]);
  return html`<span class="poster">${address ? html`<img src=${address} alt="" loading="lazy" onError=${() => setAddress(null)} />`
    : html`<${Icon} name=${job.status === "failed" ? "failed" : "film"} />`}</span>`;
}

function line(job) {
  const parts = [stateOf(job)];
  if (job.status === "queued" && job.queue_position) parts.push(inLine(job.queue_position));
  if (job.status === "processing") parts[0] += ` ${Math.round(job.progress)} %`;
  parts.push(takeOf(job, state.jobs.get(job.parent)));
  return [...parts.filter(Boolean), `${Math.round(lengthOf(job))} s`, age(job.created_at)].join(" · ");
}

function Row({ job }) {
  const { selecting, selected } = state;
  const open = state.view.job === job.id;
  const pick = () => change((now) => { if (!now.selected.delete(job.id)) now.selected.add(job.id); });
  const removed = (event) => {
    const row = event.target.closest("li");
    const near = row.nextElementSibling ?? row.previousElementSibling;
    (near?.querySelector("a") ?? document.querySelector("#gallery")).focus();
    remove([job.id]);
  };
  return html`<li class=${`row-job ${open ? "open" : ""}`} data-id=${job.id}>
    ${selecting && html`<input type="checkbox" checked=${selected.has(job.id)} onChange=${pick} aria-label=${`Select: ${nameOf(job)}`} />`}
    <a href=${hashOf(job.id)} aria-current=${open ? "true" : undefined}><${Poster} job=${job} />
      <span class="what"><span class="row-title" dir="auto">${titleOf(job)}</span>
        <span class=${`meta ${job.status}`}>${line(job)}</span>
        ${job.status === "processing" && html`<span class="bar" aria-hidden="true"><span style=${{ width: `${job.progress}%` }}></span></span>`}</span></a>
    <button type="button" class="icon-button" aria-label=${`Delete: ${nameOf(job)}`} onClick=${removed}><${Icon} name="bin" /></button>
  </li>`;
}

/** Loads older videos when the end of the list comes into sight. */
function More() {
  const end = useRef(null);
  useEffect(() => {
    const observer = new IntersectionObserver((entries) => { if (entries.some((one) => one.isIntersecting)) loadMore().catch(() => {}); });
    observer.observe(end.current);
    return () => observer.disconnect();
  });
  return html`<button type="button" class="link" ref=${end} onClick=${() => loadMore().catch(() => {})}>Show older videos</button>`;
}

export function Gallery() {
  const jobs = shown();
  const { selecting, selected } = state;
  const search = (event) => {
    change((now) => { now.search = event.target.value; });
    if (event.target.value) loadAll().catch(() => {});
  };
  const toggle = () => change((now) => { now.selecting = !now.selecting; now.selected.clear(); });
  const unfinished = jobs.filter((job) => !isOver(job)).length;
  return html`<section class="gallery" id="gallery" tabindex="-1" aria-labelledby="gallery-title">
    <div class="gallery-head"><h2 id="gallery-title">Your videos</h2>
      ${unfinished > 0 && html`<span class="badge">${unfinished} in work</span>`}
      ${jobs.length > 0 && html`<button type="button" class="link" aria-pressed=${selecting ? "true" : "false"} onClick=${toggle}>${selecting ? "Done" : "Select"}</button>`}</div>
    ${(state.jobs.size > 0 || state.search) && html`<input type="search" placeholder="Search" aria-label="Search your videos" value=${state.search} onInput=${search} />`}
    ${selecting && html`<div class="row"><button type="button" class="danger" disabled=${!selected.size}
      onClick=${() => { document.querySelector("#gallery").focus(); remove([...selected]); }}>Delete ${selected.size || ""}</button>
      <button type="button" class="quiet" onClick=${() => change((now) => { for (const job of jobs) now.selected.add(job.id); })}>All</button></div>`}
    ${jobs.length ? html`<ul>${jobs.map((job) => html`<${Row} key=${job.id} job=${job} />`)}</ul>`
      : html`<p class="nothing">${state.search ? "No video has these words." : "What you make will be kept here."}</p>`}
    ${state.olderThan && html`<${More} key=${state.jobs.size} />`}
  </section>`;
}
