// Puts the page together: starts what it needs to know, draws it, and listens to the whole window.

import { call, Refused, whenAnswered } from "./api.js";
import { Bar, Tabs } from "./bar.js";
import { checkSoon } from "./checks.js";
import { restore } from "./draft.js";
import { keepFocus, watchFocus } from "./focus.js";
import { Gallery } from "./gallery.js";
import { Header } from "./header.js";
import { Ingredients } from "./ingredients.js";
import { openJob, poll, readAddress } from "./jobs.js";
import { KeyForm } from "./key.js";
import { makeVideo } from "./making.js";
import { Copyable, DraftPanel, JobPanel } from "./panel.js";
import { Toast } from "./parts.js";
import { playOrPause, Screen } from "./stage.js";
import { change, state, subscribe } from "./store.js";
import { takeFiles } from "./taking.js";
import { DraftTimeline, JobTimeline } from "./timeline.js";
import { html, render } from "../vendor/htm-preact.js";

const HEALTH_MS = 5000, START_MS = 2000;
const MAY_NOT_LOOK = "This key may not look at videos. Enter one with the scopes submit and read.";

// --- drawing

function Page() {
  if (state.keyNeeded) return html`<${Header} /><${KeyForm} start=${start} complaint=${state.keyNeeded === "scope" ? MAY_NOT_LOOK : undefined} />`;
  const job = openJob();
  const loading = state.view.job && !job;
  return html`<${Header} />
    ${!state.online && html`<p class="banner" role="status">No connection to the server. Your draft is safe in this browser.</p>`}
    <main class=${job ? "with-job" : "with-draft"} data-tab=${state.tab} tabindex="-1">
      ${!job && html`<${Ingredients} />`}
      <section class="stage" aria-label="Stage" tabindex="-1">
        ${loading ? html`<p class="soft">Opening…</p>` : html`<${Screen} job=${job} />
          <div class="panel">${job ? html`<${JobPanel} job=${job} />` : html`<${DraftPanel} />`}</div>`}
      </section>
      ${job ? html`<${JobTimeline} key=${job.id} job=${job} />` : html`<${DraftTimeline} key="draft" />`}
      <${Gallery} />
    </main>
    <${Bar} job=${job} /><${Tabs} job=${job} /><${Toast} /><${Copyable} />
    <p class="visually-hidden" role="status" id="said">${state.said}</p>`;
}

const root = document.querySelector("#page");
function draw() {
  render(html`<${Page} />`, root);
  keepFocus();
}

// --- what the page must know

whenAnswered((online, status) => {
  if (online !== state.online || (status === 401 && !state.keyNeeded)) {
    change((now) => { now.online = online; now.keyNeeded ||= status === 401; });
  }
});

async function health() {
  const ready = await call("/readyz").catch(() => null);
  change((now) => { now.ready = ready ?? now.ready; });
  setTimeout(health, HEALTH_MS);
}

/** Models and limits: asked for until there are some, because the page may be opened before any worker. */
async function learn() {
  try {
    const [models, limits] = await Promise.all([call("/v1/models"), call("/v1/limits")]);
    call("/v1/examples").then(({ data }) => change((now) => { now.examples = data; })).catch(() => {});
    const fresh = !state.models.length && models.data.length;
    change((now) => { now.models = models.data; now.voices = models.voices; now.limits = limits; });
    if (fresh) checkSoon();
    if (models.data.length) return;
  } catch (error) {
    if (error instanceof Refused && error.status === 401) return;
    if (error instanceof Refused && error.status === 403) return change((now) => { now.keyNeeded = "scope"; });
  }
  setTimeout(learn, START_MS);
}

function start() {
  change((now) => { now.keyNeeded = false; });
  learn();
  poll();
  readAddress();
}

// --- the whole window

addEventListener("hashchange", readAddress);
addEventListener("online", () => { poll(); });

addEventListener("dragover", (event) => {
  if (![...event.dataTransfer.types].includes("Files")) return;
  event.preventDefault();
  document.documentElement.classList.add("dragging");
});
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.documentElement.classList.remove("dragging"); });
addEventListener("drop", (event) => {
  if (!event.dataTransfer.files.length) return; // a text, into a field
  event.preventDefault();
  document.documentElement.classList.remove("dragging");
  if (!state.view.job) takeFiles([...event.dataTransfer.files], event.target.closest?.("[data-drop]")?.dataset.drop);
});
addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  const isText = event.target.closest("textarea, input") && event.clipboardData.types.includes("text/plain"); // with a picture of it
  if (files.length && !isText && !state.view.job) { event.preventDefault(); takeFiles(files); }
});

addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (state.view.job) event.target.closest(".derive, .adding")?.querySelector(".primary").click();
    else makeVideo();
  }
  const idle = !event.target.closest("a, button, input, textarea, select, summary, video, audio");
  if (event.key === " " && idle && playOrPause()) event.preventDefault();
});

watchFocus();
await restore();
subscribe(draw);
draw();
health();
start();
