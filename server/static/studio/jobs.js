// Jobs, by id: what the server says about them, and what may be done with them. Every answer is checked against the
// job that it was asked for, because the seller may have gone on to another one.

import { Refused, apiKey, call, events } from "./api.js";
import { change, say, state, TOAST_MS } from "./store.js";
import { clipsDone, headlineOf, isOver, lengthOf, many } from "./words.js";

const POLL_MS = 2000, IDLE_POLL_MS = 5000, PAGE = 50, LINKS_S = 86400, LINKS_USED_S = 72000;
const tabs = new BroadcastChannel("jobs");

// --- what is known

/** Note what the server says about a job, unless a newer answer came before: the list may be a moment older than the job. */
export function take(job) {
  const known = state.jobs.get(job.id);
  if (known && isOver(known) && !isOver(job)) return;
  if (known && (job.attempts < known.attempts || job.attempts === known.attempts && clipsDone(job) < clipsDone(known))) return;
  change((now) => { now.jobs.set(job.id, job); });
  if (job.id === state.view.job && known) announce(known, job);
}

function announce(before, now) {
  if (before.status !== now.status) say(headlineOf(now));
  else if (clipsDone(before) < clipsDone(now)) say(`${many(clipsDone(now), "clip")} of ${now.num_clips} ready`);
}

function drop(id) {
  change((now) => {
    now.jobs.delete(id);
    now.selected.delete(id);
    now.leaving.delete(id);
  });
  if (state.view.job === id) open(null);
}

/** Newest first; ids sort by time. */
export const listed = () => [...state.jobs.values()].sort((a, b) => (a.id < b.id ? 1 : -1));

/** What the gallery shows. */
export function shown() {
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (job) => `${job.metadata?.title ?? ""} ${job.params.prompts.join(" ")} ${job.id}`.toLowerCase();
  return listed().filter((job) => !state.leaving.has(job.id) && words.every((word) => text(job).includes(word)));
}

// --- asking

let polling = null;

/** The newest jobs, again and again: often while one is being made. */
export async function poll() {
  clearTimeout(polling);
  if (document.hidden && state.jobs.size) return; // asked again when it is looked at
  try {
    const before = [...state.jobs.keys()];
    const page = await call(`/v1/jobs?limit=${PAGE}`);
    const there = new Set(page.data.map((job) => job.id));
    const isNew = !page.data.some((job) => state.jobs.has(job.id));
    for (const job of page.data) take(job);
    if (isNew || state.olderThan === undefined) change((now) => { now.olderThan = page.has_more ? page.last_id : null; });
    const missing = before.filter((id) => !there.has(id) && (!page.has_more || id > page.last_id));
    for (const id of missing) if (id === state.view.job) look(id); else drop(id);
  } catch (error) {
    if (error instanceof Refused && error.status === 401) return;
  }
  const busy = [...state.jobs.values()].some((job) => !isOver(job));
  polling = setTimeout(poll, busy ? POLL_MS : IDLE_POLL_MS);
}

let loading = null;

/** The next page of older jobs. Called while one is on its way, it waits for that one. */
export function loadMore() {
  loading ??= (async () => {
    try {
      const page = await call(`/v1/jobs?limit=${PAGE}&after=${state.olderThan}`);
      for (const job of page.data) take(job);
      change((now) => { now.olderThan = page.has_more ? page.last_id : null; });
    } finally {
      loading = null;
    }
  })();
  return loading;
}

/** Everything, for a search. */
export async function loadAll() {
  while (state.olderThan) await loadMore();
}

let following = null;

/** Follow the open job by its events; by asking, where they do not come. */
async function follow(id) {
  following?.abort();
  if (!id) return;
  following = new AbortController();
  const { signal } = following;
  while (!signal.aborted && state.view.job === id) {
    try {
      take(await call(`/v1/jobs/${id}`, { signal }));
      if (isOver(state.jobs.get(id))) return;
      await events(`/v1/jobs/${id}/events`, (name, data) => {
        if (name === "job.deleted") gone(id);
        else if (data.id === id) take(data);
      }, signal);
    } catch (error) {
      if (error instanceof Refused && error.status === 404) return gone(id);
      if (error instanceof Refused && error.status === 401) return;
    }
    if (!signal.aborted) await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

/** Ask about the open job, which is not in the list of all (any more). */
async function look(id) {
  try {
    take(await call(`/v1/jobs/${id}`));
  } catch (error) {
    if (error instanceof Refused && error.status === 404) gone(id);
  }
}

function gone(id) {
  if (state.leaving.has(id)) return drop(id); // deleted here
  drop(id);
  change((now) => { now.toast = { text: "This video does not exist (any more)." }; });
}

// --- the open job

export const open = (id) => { location.hash = id ? `job=${id}` : ""; };

/** Show what the address names. */
export function readAddress() {
  const id = /^#job=(job_[0-9a-v]{36})$/.exec(location.hash)?.[1] ?? null;
  change((now) => {
    now.view = { job: id };
    now.playing = null;
    if (id) now.tab = "watch";
    else if (now.tab === "watch") now.tab = "photos";
  });
  follow(id);
}

export const openJob = () => (state.view.job ? state.jobs.get(state.view.job) ?? null : null);

/** Seconds of one clip of a job: its checkpoint says it. */
export function clipSecondsOf(job) {
  const model = state.models.find((one) => one.id === job.model);
  return model ? model.frames_per_clip / model.fps : lengthOf(job) / job.num_clips;
}

// --- doing

/** Run an action on a job; a refusal becomes a toast. */
async function act(work) {
  try {
    await work();
    tabs.postMessage("changed");
  } catch (error) {
    change((now) => { now.toast = { text: error.message }; });
  }
}

export const cancel = (id) => act(async () => take(await call(`/v1/jobs/${id}/cancel`, { method: "POST" })));

/** Give a job a name of its own. */
export const rename = (id, title) => act(async () => take(await call(`/v1/jobs/${id}`, { method: "PATCH", json: { metadata: { title: title || null } } })));

/** Delete jobs, unless the seller takes it back within some seconds. */
export function remove(ids) {
  const timer = setTimeout(() => removeNow(ids), TOAST_MS);
  change((now) => {
    for (const id of ids) now.leaving.set(id, { timer });
    now.selected.clear();
    now.selecting = false;
    now.toast = { text: ids.length === 1 ? "Deleted." : `${ids.length} videos deleted.`, label: "Undo", action: () => bringBack(ids) };
  });
  if (ids.includes(state.view.job)) open(null);
}

function bringBack(ids) {
  change((now) => {
    for (const id of ids) {
      clearTimeout(now.leaving.get(id)?.timer);
      now.leaving.delete(id);
    }
    now.toast = null;
  });
}

function removeNow(ids) {
  return act(async () => {
    await Promise.all(ids.map(async (id) => {
      await call(`/v1/jobs/${id}`, { method: "DELETE", keepalive: true }).catch((error) => {
        if (error.status !== 404) throw error;
      });
      drop(id);
    }));
  }).finally(() => change((now) => { for (const id of ids) now.leaving.delete(id); }));
}

addEventListener("pagehide", () => {
  const ids = [...state.leaving.keys()];
  if (ids.length) removeNow(ids);
});

tabs.onmessage = () => poll();
addEventListener("visibilitychange", () => { if (!document.hidden && state.jobs.size) poll(); });

// --- files of a job

const links = new Map(); // job and its state → { asked, at }

/** An address of our own server as a path: under another of its names it would be a foreign one. */
export const own = (address) => (address ? address.replace(/^https?:\/\/[^/]+/, "") : address);

function ownLinks({ video, stream, preview, posters, inputs, router_maps: maps }) {
  const named = Object.entries(inputs).map(([name, address]) => [name, own(address)]);
  return { video: own(video), stream: own(stream), preview: own(preview), posters: posters.map(own), inputs: Object.fromEntries(named), router_maps: maps.map(own) };
}

const signed = (job) => call(`/v1/jobs/${job.id}/signed-urls`, { method: "POST", json: { expires_in: LINKS_S } });

/** Addresses of a job's files that players and pictures can open: signed, where a key is needed; anew for new files. */
export function linksOf(job) {
  if (!apiKey()) return ownLinks(job.urls);
  const name = `${job.id} ${job.status} ${clipsDone(job)}`;
  if (!(Date.now() - links.get(name)?.at < LINKS_USED_S * 1000)) {
    const asked = signed(job).then(ownLinks);
    asked.catch(() => links.delete(name));
    links.set(name, { asked, at: Date.now() });
  }
  return links.get(name).asked;
}

/** Ask for the links of a job again: one of them did not work. */
export function renewLinks(job) {
  for (const name of links.keys()) if (name.startsWith(job.id)) links.delete(name);
  change((now) => { now.renewed[job.id] = (now.renewed[job.id] ?? 0) + 1; });
}

/** A link for whoever the video is to be shown to. */
export const shareLink = async (job) => new URL((await signed(job)).video, location.href).href;
