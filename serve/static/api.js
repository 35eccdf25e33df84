// Requests to this server. Addresses are relative: the page also works where the app is mounted
// below another address.

const KEY = "rism-key";
let key = sessionStorage.getItem(KEY) ?? "";

/** Keep the server's key until this tab is closed. */
export function setKey(value) {
  key = value.trim();
  sessionStorage.setItem(KEY, key);
}

/** What was refused, and the `hint` that mends it; status 0 where there was no answer. */
export class Refusal extends Error {
  constructor(status, error, hint) {
    super(error);
    this.status = status;
    this.hint = hint;
  }
}

async function ask(path, options = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, `the server at ${location.host} does not answer`,
      "start it with rism serve, then try again");
  }
  if (response.ok) return response;
  const refused = await response.json().catch(() => ({}));
  throw new Refusal(response.status, refused.error ?? `the server answered ${response.status}`,
    refused.hint ?? "see the server's log");
}

/** The model, and the server's limits. */
export const info = async () => (await ask("v1/info")).json();

/** The names of the examples, each with expressions. */
export const examples = async () => (await (await ask("v1/examples")).json()).examples;

export const thumbnailAddress = (name) => `v1/examples/${name}?thumbnail=1`;

/** An example as a file. */
export async function exampleFile(name) {
  const blob = await (await ask(`v1/examples/${name}`)).blob();
  return new File([blob], `${name}.png`, { type: blob.type });
}

/**
 * Segment. The model's outputs are kept on the server, so that the same question with another
 * `tau` runs only what comes after the model; `tau` null is the bundle's own.
 */
export async function segment(file, expressions, { tau = null, maps = true, signal } = {}) {
  const form = new FormData();
  form.append("image", file, file.name);
  for (const expression of expressions) form.append("expression", expression);
  form.append("keep", "1");
  if (maps) form.append("maps", "1");
  if (tau !== null) form.append("tau", String(tau));
  return (await ask("v1/segment", { method: "POST", body: form, signal })).json();
}
