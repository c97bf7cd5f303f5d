// The live workers: how each is, what it renders, and draining it.

import { html } from "../vendor/htm-preact.js";
import { hashOf, STAGE } from "../studio/words.js";
import { setDraining } from "./asking.js";
import { state } from "./store.js";
import { MEMORY, ownerNamed, stateOf } from "./words.js";

function Job({ job }) {
  const facts = [ownerNamed(job.owner), job.priority !== "normal" && `${job.priority} priority`, job.attempt > 1 && `try ${job.attempt}`];
  return html`<div class="job"><p><a href=${`/${hashOf(job.id)}`} aria-label=${`Open the video that is made: ${job.id}`}>${STAGE[job.stage]}</a>
      <span class="soft"> · ${Math.round(job.progress)} % · ${facts.filter(Boolean).join(" · ")}</span></p>
    <progress max="100" value=${job.progress} aria-label=${`Progress of ${job.id}`}></progress></div>`;
}

function Worker({ worker }) {
  const { name, job, draining } = worker;
  const [look, text] = stateOf(worker);
  const facts = [
    worker.model, worker.device, MEMORY[worker.memory_mode], worker.attention && `${worker.attention} attention`,
    worker.seconds_per_clip && `${worker.seconds_per_clip.toFixed(1)} s a clip`,
  ];
  return html`<li class="card worker" data-worker=${name} tabindex="-1">
    <div class="worker-head"><h3>${name}</h3>
      <button type="button" class="quiet" aria-label=${`${draining ? "Resume" : "Drain"}: ${name}`} onClick=${() => setDraining(worker, !draining)}>${draining ? "Resume" : "Drain"}</button></div>
    <p class="health"><span class=${`dot ${look}`}></span>${text}</p>
    ${worker.problem && html`<p class="error">${worker.problem}</p>`}
    ${state.refused[name] && html`<p class="error">${state.refused[name]}</p>`}
    ${job && html`<${Job} job=${job} />`}
    <p class="soft facts">${facts.filter(Boolean).join(" · ")}</p>
  </li>`;
}

export const Workers = () => html`<section aria-label="Workers" class="workers" tabindex="-1"><h2>Workers</h2>
  <p class="soft">A drained worker finishes its video and takes no other, until it is resumed or restarted.</p>
  ${state.troubles.workers && html`<p class="error">${state.troubles.workers}</p>`}
  ${state.workers?.data.length === 0 && html`<p class="nothing">No worker is alive. <code>cointeract worker</code> starts one.</p>`}
  ${state.workers?.data.length > 0 && html`<ul>${state.workers.data.map((worker) => html`<${Worker} key=${worker.name} worker=${worker} />`)}</ul>`}
</section>`;
