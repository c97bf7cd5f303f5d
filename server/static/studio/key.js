// The form that asks for an API key.

import { apiKey, useKey } from "./api.js";
import { focusSoon } from "./focus.js";
import { html } from "../vendor/htm-preact.js";

/** `start` goes on with the new key. `complaint` says what is wrong with the one that there is. */
export function KeyForm({ start, complaint = "This key is not valid (any more). Enter another one." }) {
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
    ${apiKey() && html`<p class="error" id="key-error">${complaint}</p>`}
    <label class="check"><input type="checkbox" name="remember" /> Remember it in this browser. Otherwise this tab alone keeps it.</label>
    <button class="primary">Use this key</button></form></main>`;
}
