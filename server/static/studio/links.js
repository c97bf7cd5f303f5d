// Links of a job's files for what is drawn: asked for again until they come, and never those of another job.

import { useEffect, useState } from "../vendor/htm-preact.js";
import { linksOf } from "./jobs.js";
import { change, state } from "./store.js";
import { clipsDone } from "./words.js";

const AGAIN_MS = 2000;

export function useLinks(job) {
  const [found, setFound] = useState(null);
  const wanted = `${job.id} ${job.status} ${clipsDone(job)} ${state.renewed[job.id] ?? 0}`;
  useEffect(() => {
    let current = true, timer = null;
    const ask = async () => {
      try {
        const links = await linksOf(job);
        if (!current) return;
        setFound({ job: job.id, links });
        change((now) => { delete now.problem[job.id]; });
      } catch (error) {
        if (!current) return;
        change((now) => { now.problem[job.id] = error.message; });
        timer = setTimeout(ask, AGAIN_MS);
      }
    };
    ask();
    return () => { current = false; clearTimeout(timer); };
  }, [wanted]);
  return found?.job === job.id ? found.links : null;
}
