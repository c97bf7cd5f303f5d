// The one state of the studio.

import { watched } from "./watched.js";

export const state = {
  view: { job: null },        // the id of the open job; null: the draft
  tab: "photos",              // what a phone shows
  jobs: new Map(),            // every job that is known, by id
  olderThan: undefined,       // the id behind which the server has older ones; null: all are known; at first nobody has asked
  search: "",
  selecting: false,
  selected: new Set(),
  leaving: new Map(),         // jobs that can still be brought back: id → { timer }
  draft: null,                // see draft.js
  errors: {},                 // field → sentence
  sending: null,              // an upload: { sent, total, waiting }
  estimate: null,             // the answer to /v1/validate for the draft as it is
  checking: false,
  recorder: "idle",           // idle, asking, recording, reading
  recordedFor: 0,
  level: 0,
  models: [],
  voices: [],                 // who can say a text; empty where the server cannot speak
  limits: null,
  examples: [],               // what somebody who is new here can try
  fetching: false,            // the example is on its way
  renaming: null,             // { job, title }
  online: true,
  ready: null,                // the answer to /readyz
  keyNeeded: false,           // "scope": there is a key, but it may not read
  toast: null,                // { text, action, label }
  said: "",                   // what a screen reader is told
  playing: null,              // { job, clip } or { speech: clip }
  deriving: null,             // a job about to be made from another one, see derive.js
  mapsShown: false,           // whether router maps lie over the picture
  copyable: null,             // a text to be copied by hand
  renewed: {},                // job id → how often its links were asked for again, because one did not work
  problem: {},                // job id → why its file could not be fetched
};

export const TOAST_MS = 7000; // and so long a deletion can be taken back

export const { change, subscribe } = watched(state);

/** Tell a screen reader, once. */
export function say(text) {
  if (text !== state.said) change((now) => { now.said = text; });
}
