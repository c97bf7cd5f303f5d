// The header: how the server is, the note of a toy checkpoint (once), the API key.

import { apiKey, forgetKey, keyIsRemembered, useKey } from "./api.js";
import { model } from "./draft.js";
import { focusSoon } from "./focus.js";
import { openJob } from "./jobs.js";
import { html } from "../vendor/htm-preact.js";
import { state } from "./store.js";
import { many, megabytes } from "./words.js";

function health() {
  const { ready, online } = state;
  if (!online) return ["bad", "No connection"];
  if (!ready) return ["", "Connecting…"];
  if (ready.ready) return ["good", `${many(ready.workers, "worker")} ready`];
  if (!ready.storage) return ["bad", "The disk is full or away"];
  if (ready.problems.length) return ["wait", ready.problems[0]];
  return ["wait", ready.failing_workers ? "A worker cannot work" : "Waiting for a worker"];
}

function Note() {
  const name = openJob()?.model;
  const shown = state.models.find((one) => one.id === name) ?? model();
  if (!shown?.note && shown?.trained !== false) return null;
  return html`<details class="menu"><summary class="badge">Demo model</summary>
    <div class="card"><p>${shown.note || "An untrained network, for trying the service out. Its videos are noise."}</p></div></details>`;
}

const LIMITS = {
  max_queued: (value) => `${many(value, "video")} waiting`, max_running: (value) => `${many(value, "video")} at a time`,
  gpu_seconds_per_day: (value) => `${Math.round(value / 60)} min of machine time a day`, max_stored_bytes: (value) => `${megabytes(value)} stored`,
};

function KeyMenu() {
  const key = state.limits?.key;
  if (!key || !apiKey()) return null;
  const limits = Object.entries(key.limits).filter(([name, value]) => value !== null && LIMITS[name]).map(([name, value]) => LIMITS[name](value));
  return html`<details class="menu"><summary>Key</summary><div class="card">
    <p>May: ${key.scopes.join(", ")}</p><p>${limits.length ? `At most ${limits.join(", ")}` : "Without limits of its own"}</p>
    <p class="soft">${keyIsRemembered() ? "Remembered by this browser" : "Kept in this tab only"}</p>
    <button type="button" onClick=${() => { forgetKey(); location.reload(); }}>Forget the key</button></div></details>`;
}

export const Header = () => {
  const [look, text] = health();
  return html`<header tabindex="-1"><a class="brand" href="#"><img src="/static/icon.svg" alt="" width="28" height="28" /><h1>CoInteract <span>Studio</span></h1></a>
    <p class="health" title=${text}><span class=${`dot ${look}`}></span><span class="health-text">${text}</span></p>
    <${Note} /><nav><${KeyMenu} /><a href="/docs">API</a></nav></header>`;
};

export function KeyForm({ start }) {
  const submit = (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    useKey(form.get("key").trim(), form.get("remember") === "on");
    start();
    focusSoon("main");
  };
  return html`<main class="alone" tabindex="-1"><form class="card key-form" onSubmit=${submit}><h2>This server asks for a key</h2>
    <p class="soft">Whoever runs it makes one with <code>cointeract keys create</code>.</p>
    <label>API key<input id="key" name="key" type="password" autocomplete="off" placeholder="ck_…" required
      aria-invalid=${apiKey() ? "true" : undefined} aria-describedby=${apiKey() ? "key-error" : undefined} /></label>
    ${apiKey() && html`<p class="error" id="key-error">${state.keyNeeded === "scope"
      ? "This key may not look at videos. Enter one with the scopes submit and read." : "This key is not valid (any more). Enter another one."}</p>`}
    <label class="check"><input type="checkbox" name="remember" /> Remember it in this browser. Otherwise this tab alone keeps it.</label>
    <button class="primary">Use this key</button></form></main>`;
}
