// The one state of the admin page.

import { watched } from "../studio/watched.js";

export const state = {
  workers: null,         // the newest answer to /v1/admin/workers
  queues: null,          // that to /v1/admin/queue
  owners: null,          // that to /v1/admin/owners
  troubles: {},          // name of one of these → why its newest answer is missing
  setting: new Set(),    // names of workers that are being drained or resumed
  refused: {},           // name of a worker → why it could not be
  shown: "",             // the key whose use is shown; empty: all
  online: true,
  keyNeeded: false,      // "scope": there is a key, but not an admin's
  said: "",              // what a screen reader is told
};

export const { change, subscribe } = watched(state);
