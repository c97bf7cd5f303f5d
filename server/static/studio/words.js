// Every sentence that a seller reads about states and errors. No name of a field, no number of a signal.

export const FIELD = {
  person_image: "Person", product_image: "Product", audio: "Speech", prompt: "Scene", negative_prompt: "Avoid",
  model: "Model", size: "Size", preset: "Quality", num_inference_steps: "Steps", guidance_scale: "Guidance",
  flow_shift: "Flow shift", product_scale: "Product size", seed: "Seed", fit: "Photo", pose_video: "Pose video",
};

export const PRESET = {
  exact: "Exact", balanced: "Balanced", fast: "Fast", draft: "Draft", parity: "As published",
};

export const FIT = { cover: "Fill the frame", contain: "Show all of it", stretch: "Stretch" };

export const STAGE = {
  queued: "Waiting", loading: "Loading the model", encoding: "Reading photos and speech", denoising: "Painting",
  decoding: "Developing", muxing: "Adding the sound", done: "Finishing",
};

export const STATE = { queued: "Waiting", processing: "Making", succeeded: "Ready", failed: "Failed", canceled: "Canceled" };

// --- texts and amounts

/** Characters as the server counts them: an emoji is one, not two. */
export const charsOf = (text) => [...text].length;
export const beginning = (text, most) => [...text].slice(0, most).join("");

export const many = (count, thing) => `${count} ${thing}${count === 1 ? "" : "s"}`;
export const seconds = (value) => `${value.toFixed(1)} s`;
export const clock = (time) => new Date(time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
export function fileSize(bytes) {
  if (bytes < 1e6) return `${Math.max(1, Math.round(bytes / 1e3))} KB`;
  const megabytes = bytes / 2 ** 20;
  return megabytes < 10240 ? `${megabytes.toFixed(bytes < 1e7 ? 1 : 0)} MB` : `${(megabytes / 1024).toFixed(1)} GB`;
}

const LIMITS = {
  max_queued: (value) => `${many(value, "video")} waiting`, max_running: (value) => `${many(value, "video")} at a time`,
  gpu_seconds_per_day: (value) => `${duration(value)} of machine time a day`, max_stored_bytes: (value) => `${fileSize(value)} stored`,
};

/** The limits of a key that there are, in words. */
export const limitsOf = (limits) => Object.entries(LIMITS).filter(([name]) => typeof limits[name] === "number").map(([name, words]) => words(limits[name]));

export function duration(value) {
  const whole = Math.max(1, Math.round(value)), minutes = Math.round(whole / 60);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min${whole % 60 ? ` ${whole % 60} s` : ""}`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function age(time, now = Date.now()) {
  const passed = (now - new Date(time)) / 1000;
  if (passed < 60) return "just now";
  if (passed < 3600) return `${Math.floor(passed / 60)} min ago`;
  if (passed < 86400) return `${Math.floor(passed / 3600)} h ago`;
  return new Date(time).toLocaleDateString([], { day: "numeric", month: "short" });
}

export function ordinal(number) {
  const ending = { 1: "st", 2: "nd", 3: "rd" }[number % 10];
  return `${number}${ending && Math.floor(number / 10) % 10 !== 1 ? ending : "th"}`;
}

export const inLine = (position) => (position === 1 ? "next in line" : `${ordinal(position)} in line`);

// --- a job

/** Where the studio shows it. */
export const hashOf = (id) => `#job=${id}`;

export const isOver = (job) => ["succeeded", "failed", "canceled"].includes(job.status);
export const titleOf = (job) => job.metadata?.title || job.params.prompts[0];
export const clipsDone = (job) => job.urls.clips.length;
export const lengthOf = (job) => job.duration_s ?? job.params.num_frames / 25;
export const nameOf = (job) => `${beginning(titleOf(job), 60)}, ${Math.round(lengthOf(job))} s`;

/** What a job is to the one that it was made from, which may be gone; empty if to none. */
export const takeOf = (job, parent) => (job.parent ? parent?.params.num_frames < job.params.num_frames ? "extended" : "another take" : "");

/** One or two words, for the gallery. */
export const stateOf = (job) => (job.status === "queued" && job.attempts > 0 ? "Continuing soon" : STATE[job.status]);

/** The headline of an open job. */
export function headlineOf(job) {
  const done = clipsDone(job);
  if (job.status === "queued" && job.attempts > 0) return done ? `Continuing from clip ${done + 1} soon` : "Starting again soon";
  if (job.status === "processing" && job.attempts > 1) return done ? `Continuing from clip ${Math.min(done + 1, job.num_clips)}` : "Started again";
  return {
    queued: "Waiting", processing: "Making your video", succeeded: "Your video is ready",
    failed: "This video could not be made", canceled: "Canceled",
  }[job.status];
}

/** What a waiting or rendering job is doing, in a line. */
export function doingOf(job) {
  const parts = [];
  if (job.status === "queued") {
    if (job.queue_position) parts.push(inLine(job.queue_position));
    if (job.estimated_start_at) parts.push(`starts about ${clock(job.estimated_start_at)}`);
  } else {
    parts.push(STAGE[job.stage] ?? "Working", `clip ${Math.min(job.clip + 1, job.num_clips)} of ${job.num_clips}`);
  }
  if (job.estimated_finish_at) parts.push(`ready about ${clock(job.estimated_finish_at)}`);
  return parts.join(" · ");
}

const FAILURES = {
  out_of_memory: "It is too large for the machine that makes the videos. Choose a smaller size, and try again.",
  child_died: "The machine that makes the videos stopped several times while it worked on this one.",
  worker_lost: "The machine that makes the videos was lost several times.",
  stalled: "It stopped making progress.",
  invalid_input: "Something in the photos or the speech cannot be used.",
};

export function failureOf(job) {
  if (job.status === "canceled") {
    const done = clipsDone(job);
    const stopped = job.cancel_reason === "deadline" ? "Its time was over" : "It was stopped";
    return done ? `${stopped}. ${many(done, "finished clip")} can still be watched.` : `${stopped} before a clip was finished.`;
  }
  const reason = FAILURES[job.error?.code] ?? "Something went wrong while it was made.";
  return clipsDone(job) ? `${reason} The finished clips can still be watched.` : reason;
}

// --- errors

/** A refusal of the server as a sentence with limit and remedy. */
export function sentenceOf(error) {
  const { code, limit, field } = error;
  const thing = field === "audio" ? "recording" : field?.endsWith("image") ? "photo" : "file";
  const sentences = {
    file_too_large: () => `This ${thing} has too many bytes: at most ${fileSize(limit)}. Choose a smaller one.`,
    request_too_large: () => `Photos and speech together are too large: at most ${fileSize(limit)}. Choose smaller files.`,
    unsupported_media_type: () => kindRefused(field),
    undecodable_file: () => `This ${thing} cannot be read. Save it again, or choose another one.`,
    truncated_file: () => `The end of this ${thing} is missing. Copy it again, or choose another one.`,
    empty_file: () => `This ${thing} is empty. Choose another one.`,
    image_too_large: () => tooManyPixels(limit),
    image_too_small: () => tooFewPixels(limit),
    audio_too_long: () => error.message.includes("clips") ? `The speech needs more than ${limit} clips. Trim it.` : speechTooLong(limit),
    audio_too_short: () => speechTooShort(limit),
    missing_field: () => MISSING[field] ?? `${FIELD[field] ?? "Something"} is needed.`,
    too_long: () => textTooLong(limit),
    too_many: () => `There are too many scenes: at most ${limit}.`,
    out_of_range: () => `${FIELD[field] ?? "This"} is beyond what is possible here${limit === undefined ? "" : `: ${limit}`}.`,
    unsupported_size: () => `This model does not make videos of this size${limit === undefined ? "" : `: ${limit}`}.`,
    queue_full: () => "Many videos are waiting already. Try again in a little while.",
    queued_jobs_limit: () => `Your key may have ${limit} videos waiting. Wait for one, or cancel one.`,
    gpu_seconds_limit: () => "Your key has used its rendering time of the last 24 hours.",
    stored_bytes_limit: () => `Your videos take ${fileSize(limit)}, which is all that your key may store. Delete some.`,
    insufficient_storage: () => "The server has no space left. Tell whoever runs it.",
    insufficient_scope: () => "Your key may look, but not do this.",
    no_checkpoint: () => "The server is still starting: it has no model yet.",
    idempotency_key_reused: () => "This was sent before with other contents. Press “Make video” again.",
    unauthorized: () => "Enter a valid API key.",
  };
  return sentences[code]?.() ?? error.message;
}

export const MISSING = {
  person_image: "Add a photo of the person.",
  audio: "Add speech: choose a file, or record it.",
  prompt: "Say in a sentence what happens in the first scene.",
};
export const kindRefused = (field) => field === "audio"
  ? "This is not a recording that can be used. Choose WAV, MP3, M4A, MP4, MOV, WebM, OGG, FLAC, AAC or AIFF."
  : "This is not a photo that can be used. Choose JPEG, PNG, WebP, HEIC or AVIF.";
export const tooManyPixels = (limit) => `This photo has too many pixels: at most ${Math.round(limit / 1e6)} megapixels. Choose a smaller one.`;
export const tooFewPixels = (limit) => `This photo is too small: at least ${limit} pixels wide and high. Choose a larger one.`;
export const speechTooLong = (limit) => `The speech is too long: at most ${duration(limit)}. Trim it, or choose a shorter one.`;
export const speechTooShort = (limit) => `The speech is too short: at least ${limit} s.`;
export const textTooLong = (limit) => `This text is too long: at most ${limit} characters.`;
