// Every key with its limits and what it uses now.

import { html } from "../vendor/htm-preact.js";
import { age, limitsOf, STATE } from "../studio/words.js";
import { state } from "./store.js";
import { Table } from "./table.js";
import { machineTime, ownerNamed, space } from "./words.js";

const COLUMNS = ["Key", "May", "Videos", "Machine time, 24 h", "Stored", "Limits"];

/** What is used, and how much of a limit that is. */
const Used = ({ text, used, limit, what }) => html`${text}${limit !== null && limit !== undefined && html`
  <progress max=${limit} value=${Math.min(used, limit)} class=${used >= limit ? "full" : ""} aria-label=${what}></progress>`}`;

function rowOf(owner) {
  const { key, limits, revoked_at: revoked } = owner;
  const jobs = Object.entries(owner.jobs).filter(([, count]) => count).map(([status, count]) => `${count} ${STATE[status].toLowerCase()}`);
  const name = ownerNamed(key), stored = owner.stored_bytes + owner.files_bytes;
  return {
    id: key,
    look: revoked ? "revoked" : "",
    cells: [
      html`<b>${name}</b>${name !== key && html` <code class="soft">${key}</code>`}${revoked && html` <span class="badge">revoked ${age(revoked)}</span>`}`,
      owner.scopes.join(", ") || "everything",
      jobs.join(", ") || "none",
      html`<${Used} text=${machineTime(owner.gpu_seconds_24h)} used=${owner.gpu_seconds_24h} limit=${limits.gpu_seconds_per_day} what=${`Machine time of ${name}`} />`,
      html`<${Used} text=${space(stored)} used=${owner.stored_bytes} limit=${limits.max_stored_bytes} what=${`Space of ${name}`} />`,
      limitsOf(limits).join(", ") || "none",
    ],
  };
}

/** Keys that work before revoked ones; those that use most first. */
const order = (one, other) => Boolean(one.revoked_at) - Boolean(other.revoked_at)
  || other.gpu_seconds_24h - one.gpu_seconds_24h || ownerNamed(one.key).localeCompare(ownerNamed(other.key));

export const Keys = () => html`<section aria-label="Keys" class="keys" tabindex="-1"><h2>Keys</h2>
  <p class="soft"><code>cointeract keys create</code> makes one, <code>cointeract keys revoke</code> takes it away.</p>
  ${state.troubles.owners && html`<p class="error">${state.troubles.owners}</p>`}
  ${state.owners && html`<div class="card"><${Table} label="Keys" columns=${COLUMNS} rows=${[...state.owners.data].sort(order).map(rowOf)} /></div>`}</section>`;
