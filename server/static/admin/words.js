// The words of the admin page about workers and keys.

import { duration, fileSize } from "../studio/words.js";
import { state } from "./store.js";

export const MEMORY = { resident: "all on the device", "text-offload": "text encoder beside the device", offload: "weights streamed" };

export const machineTime = (seconds) => (seconds ? duration(seconds) : "none");
export const space = (bytes) => (bytes ? fileSize(bytes) : "none");

/** How a worker is: a colour and words. */
export function stateOf({ problem, draining, ready, job }) {
  if (problem) return ["bad", "Cannot work"];
  if (draining) return ["wait", job ? "Finishes its video, takes no other" : "Drained"];
  if (!ready) return ["wait", "Loading the model"];
  return ["good", job ? "Making a video" : "Waiting for a video"];
}

/** The name of a key, by its id. */
export function ownerNamed(id) {
  if (id === "local") return "without a key";
  return state.owners?.data.find((owner) => owner.key === id)?.name ?? id;
}
