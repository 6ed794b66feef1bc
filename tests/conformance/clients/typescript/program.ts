/** Calls every route, by the types that openapi-typescript made of the description: program.js URL. */

import type { components, paths } from "./schema.js";

declare const process: { argv: string[] };

type Path = keyof paths;
type Post = {
  [P in Path]: paths[P] extends { post: { requestBody: { content: { "application/json": infer B } } } }
    ? B
    : "without a body";
};
type Success<T> = T extends { responses: { 200: { content: infer C } } }
  ? C extends { "application/json": infer J }
    ? J
    : string
  : never;
type Answer<P extends Path> = paths[P] extends { post: infer O } ? Success<O> : Success<paths[P]["get"]>;

const none = "without a body";
const base = process.argv[2];

const ask: components["schemas"]["GenerateRequest"] = { prompt: "Hello", max_tokens: 3, receipt: true };
const asked = await fetch(`${base}/generate`, { method: "POST", body: JSON.stringify(ask) });
const { receipt } = (await asked.json()) as components["schemas"]["GenerateResponse"];
if (!receipt) throw new Error("no receipt");

// A route that is missing, or that there is not, is an error of the compiler.
const bodies: { [P in Path]: Post[P] } = {
  "/": { inputs: "The capital of France is", parameters: { max_new_tokens: 3 } },
  "/generate": { prompt: "The capital of France is", max_tokens: 3 },
  "/generate_stream": { inputs: "The capital of France is", parameters: { max_new_tokens: 3 } },
  "/v1/completions": { prompt: ["The capital of France is"], max_tokens: 3, temperature: 0, response_format: { type: "text" } },
  "/v1/chat/completions": {
    messages: [{ role: "user", content: [{ type: "text", text: "Hello" }] }, { role: "assistant" }],
    max_completion_tokens: 3,
    stop: null,
  },
  "/v1/responses": { input: "Hello", max_output_tokens: 3, text: { format: { type: "text" } } },
  "/v1/embeddings": { input: ["The capital of France is", "Hello"], dimensions: 16, encoding_format: "base64" },
  "/score": { queries: "The capital of France is", documents: ["Paris", "Hello"] },
  "/v1/score": { text_1: ["The capital of France is", "a"], text_2: ["Paris", "b"] },
  "/v1/models": none,
  "/v1/models/{model_id}": none,
  "/tokenize": { prompt: "The capital of France is" },
  "/detokenize": { tokens: [504, 3575] },
  "/tokenizer_info": none,
  "/check": { prompt: "Hello", runs: 2, max_tokens: 2 },
  "/verify": receipt,
  "/v1/solve": { grid: "3.......5...2...4....5...61...5.31.." },
  "/metrics": none,
  "/health": none,
  "/ready": none,
  "/version": none,
  "/server_info": none,
  "/get_server_info": none,
  "/model_info": none,
  "/get_model_info": none,
  "/info": none,
  "/health_generate": none,
  "/flush_cache": none,
};
const posted = new Set<Path>(["/flush_cache"]); // without a body

async function call<P extends Path>(path: P, name = ""): Promise<Answer<P>> {
  const body = bodies[path];
  const post = body !== none || posted.has(path);
  const response = await fetch(base + path.replace("{model_id}", name), {
    method: post ? "POST" : "GET",
    body: body === none ? undefined : JSON.stringify(body),
  });
  const text = await response.text();
  if (!response.ok) throw new Error(`${path}: ${response.status} ${text}`);
  const json = response.headers.get("content-type")?.startsWith("application/json");
  return (json ? JSON.parse(text) : text) as Answer<P>;
}

function same<T>(found: T, expected: T): void {
  if (found !== expected) throw new Error(`got ${found}, expected ${expected}`);
}

// What the types must refuse: the compiler complains of a line here that it accepts.
// @ts-expect-error
export const unknownField: components["schemas"]["CompletionRequest"] = { prompt: "a", promt: "a" };
// @ts-expect-error
export const nothingAsked: components["schemas"]["CompletionRequest"] = { max_tokens: 3 };
// @ts-expect-error
export const notNeutral: components["schemas"]["CompletionRequest"] = { prompt: "a", lora_path: "x" };

const { data } = await call("/v1/models");
const name: string = data[0]!.id;
same((await call("/v1/models/{model_id}", name)).id, name);
same((await call("/health")).status, "ready");
const completion = await call("/v1/completions");
const usage: number = completion.usage.completion_tokens;
same(usage, 3);
const text: string = completion.choices[0]!.text;
const generated = await call("/generate");
if (Array.isArray(generated) || !("output_ids" in generated)) throw new Error("not one of ours");
same(generated.text, text);
same((await call("/"))[0]!.generated_text, text);
same((await call("/v1/chat/completions")).choices[0]!.message.role, "assistant");
const response = await call("/v1/responses");
const item = response.output[0]!;
if (item.type !== "message") throw new Error("no message");
same(item.content[0]!.type, "output_text");
same(response.incomplete_details?.reason, "max_output_tokens");
same((await call("/v1/embeddings")).data[1]!.index, 1);
same((await call("/score")).data[0]!.digest, (await call("/v1/score")).data[0]!.digest);
same((await call("/tokenize")).count, 5);
same((await call("/verify")).match, true);
const solution = await call("/v1/solve");
if (Array.isArray(solution)) throw new Error("one puzzle has one answer");
same(solution.status, "solved");
same((await call("/detokenize")).prompt, "The capital");
for (const path of Object.keys(bodies) as Path[]) if (path !== "/v1/models/{model_id}") await call(path);
console.log(`openapi-typescript: ${Object.keys(bodies).length} routes called`);
