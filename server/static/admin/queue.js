// Who waits for what, in the order in which videos start.

import { html } from "../vendor/htm-preact.js";
import { clock, hashOf, many } from "../studio/words.js";
import { state } from "./store.js";
import { Table } from "./table.js";
import { ownerNamed } from "./words.js";

const COLUMNS = ["Place", "Video", "Key", "Priority", "Starts", "Ready"];
const about = (time) => (time ? `about ${clock(time)}` : "not known");

const rowOf = (job) => ({
  id: job.id,
  cells: [
    job.position, html`<a href=${`/${hashOf(job.id)}`}><code>${job.id}</code></a>`, ownerNamed(job.owner),
    job.begun ? "goes on" : job.priority, about(job.estimated_start_at), about(job.estimated_finish_at),
  ],
});

const Line = ({ queue }) => html`<div class="card line"><h3>${queue.model}</h3>
  <p class="soft">${queue.waiting} waiting · ${queue.running} running · ${many(queue.workers, "worker")}</p>
  ${queue.data.length > 0 && html`<${Table} label=${`Waiting for ${queue.model}`} columns=${COLUMNS} rows=${queue.data.map(rowOf)} />`}
  ${queue.waiting > queue.data.length && html`<p class="soft">and ${queue.waiting - queue.data.length} more</p>`}</div>`;

export const Queue = () => html`<section aria-label="Queue" class="queue" tabindex="-1"><h2>Queue</h2>
  ${state.troubles.queues && html`<p class="error">${state.troubles.queues}</p>`}
  ${state.queues?.data.length === 0 && html`<p class="nothing">Nothing waits, and there is no model to wait for.</p>`}
  ${state.queues?.data.map((queue) => html`<${Line} key=${queue.model} queue=${queue} />`)}</section>`;
