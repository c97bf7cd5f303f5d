// Use by day, of one key or of all: bars, and the same as a table.

import { html } from "../vendor/htm-preact.js";
import { many } from "../studio/words.js";
import { change, state } from "./store.js";
import { Table } from "./table.js";
import { machineTime, ownerNamed } from "./words.js";

const DAYS = 14, DAY_MS = 86400000;
const COLUMNS = ["Day", "Submitted", "Ready", "Failed", "Canceled", "Machine time"];
const COUNTS = ["submitted", "succeeded", "failed", "canceled", "gpu_seconds"];

/** The last days (UTC, as the server counts them), the oldest first, each with the sum over `owners`. */
function daysOf(owners, now = Date.now()) {
  const days = new Map();
  for (let back = DAYS - 1; back >= 0; back -= 1) {
    const date = new Date(now - back * DAY_MS).toISOString().slice(0, 10);
    days.set(date, { date, ...Object.fromEntries(COUNTS.map((name) => [name, 0])) });
  }
  for (const day of owners.flatMap((owner) => owner.days)) {
    const sum = days.get(day.date);
    if (sum) for (const name of COUNTS) sum[name] += day[name];
  }
  return [...days.values()];
}

const dayText = (date) => new Date(date).toLocaleDateString([], { day: "numeric", month: "short", timeZone: "UTC" });

/** `parts`: [[class, value of a day]], from the bottom up. */
function Bars({ title, total, days, parts, told }) {
  const most = Math.max(...days.map((day) => parts.reduce((sum, [, of]) => sum + of(day), 0)), 1e-9);
  return html`<figure class="card" aria-hidden="true"><figcaption><b>${title}</b> <span class="soft">${total}</span></figcaption>
    <ol class="bars">${days.map((day) => html`<li key=${day.date} title=${`${dayText(day.date)}: ${told(day)}`}>
      ${parts.map(([look, of]) => html`<span class=${look} style=${{ height: `${(100 * of(day)) / most}%` }}></span>`)}</li>`)}</ol>
    <p class="soft ends"><span>${dayText(days[0].date)}</span><span>${dayText(days.at(-1).date)}</span></p></figure>`;
}

const unfinished = (day) => Math.max(0, day.submitted - day.succeeded - day.failed - day.canceled);
const VIDEOS = [["ready", (day) => day.succeeded], ["failed", (day) => day.failed], ["other", (day) => day.canceled + unfinished(day)]];
const TIME = [["time", (day) => day.gpu_seconds]];
const sum = (days, of) => days.reduce((total, day) => total + of(day), 0);

const rowOf = (day) => ({
  id: day.date,
  cells: [dayText(day.date), day.submitted, day.succeeded, day.failed, day.canceled, machineTime(day.gpu_seconds)],
});

export function Usage() {
  if (!state.owners) return null;
  const { owners: { data: owners }, shown } = state;
  const days = daysOf(owners.filter((owner) => !shown || owner.key === shown));
  const videos = (day) => `${many(day.submitted, "video")}, ${day.failed} failed`;
  const busy = days.filter((day) => COUNTS.some((name) => day[name]));
  return html`<section aria-label="Use by day" class="usage" tabindex="-1"><div class="row"><h2>Use by day</h2>
      <label class="inline"><span class="visually-hidden">Key</span><select id="shown" value=${shown} onChange=${(event) => change((now) => { now.shown = event.target.value; })}>
        <option value="">All keys</option>${owners.map(({ key }) => html`<option value=${key}>${ownerNamed(key)}</option>`)}</select></label></div>
    <p class="soft">Of videos that are still stored, in the last ${DAYS} days (UTC).</p>
    <div class="charts"><${Bars} title="Videos" total=${`${many(sum(days, (day) => day.submitted), "video")} submitted`} days=${days} parts=${VIDEOS} told=${videos} />
      <${Bars} title="Machine time" total=${machineTime(sum(days, (day) => day.gpu_seconds))} days=${days} parts=${TIME} told=${(day) => machineTime(day.gpu_seconds)} /></div>
    <details class="details"><summary>As a table</summary>${busy.length ? html`<${Table} label="Use by day" columns=${COLUMNS} rows=${busy.reverse().map(rowOf)} />` : html`<p class="soft">Nothing was used.</p>`}</details>
  </section>`;
}
