// Clients in JavaScript, as npm has them: client.mjs URL. Each makes an object and runs a loop of two forced tools.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { AIMessage, HumanMessage, ToolMessage } from "@langchain/core/messages";
import { ChatOpenAI } from "@langchain/openai";
import { embedMany, generateObject, generateText, streamObject, streamText, tool } from "ai";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const baseURL = `${process.argv[2]}/v1`;
const apiKey = "none";
const openai = new OpenAI({ baseURL, apiKey });
const [{ id: model }] = (await openai.models.list()).data;

const Weather = z.object({ city: z.enum(["Paris", "Rome", "Oslo"]), unit: z.enum(["celsius", "fahrenheit"]) });
const Sum = z.object({ a: z.number().int().min(0).max(99), b: z.number().int().min(0).max(99) });
const TOOLS = { get_weather: Weather, add: Sum };
const RESULTS = { get_weather: "18 degrees", add: "7" };
const QUESTION = "How warm is it in Rome, and what is 3 plus 4?";
const City = z.object({ city: z.enum(["Paris", "Rome", "Oslo"]), large: z.boolean() });
const ASK = "Name a city.";

async function openaiParses() {
  const completion = await openai.chat.completions.parse({
    model, messages: [{ role: "user", content: ASK }], response_format: zodResponseFormat(City, "city"), temperature: 0,
  });
  City.parse(completion.choices[0].message.parsed);
}

async function openaiResponds() {
  const ask = { model, input: ASK, temperature: 0, text: { format: zodTextFormat(City, "city") } };
  const { output_parsed: parsed } = await openai.responses.parse(ask);
  City.parse(parsed);
  const streamed = await openai.responses.stream(ask).finalResponse();
  assert.deepEqual(streamed.output_parsed, parsed);
}

async function openaiEmbeds() {
  const input = ["a cat", "a dog"];
  const [plain, packed] = await Promise.all(
    ["float", "base64"].map((encoding_format) => openai.embeddings.create({ model, input, encoding_format })),
  );
  assert.equal(plain.data.length, 2);
  const unpacked = new Float32Array(new Uint8Array(Buffer.from(packed.data[1].embedding, "base64")).buffer);
  assert.deepEqual([...unpacked], [...Float32Array.from(plain.data[1].embedding)]);
}

async function sdkEmbeds(llm) {
  const { embeddings } = await embedMany({ model: llm, values: ["a cat", "a dog"] });
  assert.equal(embeddings.length, 2);
  assert.equal(embeddings[0].length, embeddings[1].length);
}

async function openaiLoops(stream) {
  const tools = Object.entries(TOOLS).map(([name, parameters]) => zodFunction({ name, parameters }));
  const messages = [{ role: "user", content: QUESTION }];
  for (const [name, schema] of Object.entries(TOOLS)) {
    const ask = { model, messages, tools, tool_choice: { type: "function", function: { name } }, temperature: 0, max_tokens: 200 };
    const completion = stream
      ? await openai.chat.completions.stream(ask).finalChatCompletion()
      : await openai.chat.completions.parse(ask);
    const message = completion.choices[0].message;
    assert.equal(message.tool_calls.length, 1);
    const [call] = message.tool_calls;
    assert.equal(call.function.name, name);
    assert.deepEqual(schema.parse(call.function.parsed_arguments), JSON.parse(call.function.arguments));
    messages.push(message, { role: "tool", tool_call_id: call.id, content: RESULTS[name] });
  }
  const last = await openai.chat.completions.create({ model, messages, tools, temperature: 0, max_tokens: 16 });
  assert.ok(last.choices[0].message.content);
}

async function sdkMakesObjects(llm) {
  const { object } = await generateObject({ model: llm, schema: City, prompt: ASK, temperature: 0 });
  City.parse(object);
  const streamed = streamObject({ model: llm, schema: City, prompt: ASK, temperature: 0 });
  for await (const _ of streamed.partialObjectStream);
  assert.deepEqual(await streamed.object, object);
}

async function sdkLoops(llm, stream) {
  const tools = Object.fromEntries(
    Object.entries(TOOLS).map(([name, inputSchema]) => [name, tool({ description: name, inputSchema, execute: () => RESULTS[name] })]),
  );
  const messages = [{ role: "user", content: QUESTION }];
  for (const [toolName, schema] of Object.entries(TOOLS)) {
    const ask = { model: llm, messages, tools, toolChoice: { type: "tool", toolName }, temperature: 0, maxOutputTokens: 200 };
    const answer = stream ? streamText(ask) : await generateText(ask);
    const [call] = await answer.toolCalls;
    assert.equal(call.toolName, toolName);
    schema.parse(call.input);
    assert.equal((await answer.toolResults)[0].output, RESULTS[toolName]);
    messages.push(...(await answer.response).messages);
  }
  const last = await generateText({ model: llm, messages, tools, toolChoice: "none", temperature: 0, maxOutputTokens: 16 });
  assert.ok(last.text);
}

async function langchainMakesObjects() {
  const llm = new ChatOpenAI({ model, apiKey, temperature: 0, maxTokens: 200, configuration: { baseURL } });
  for (const method of ["jsonSchema", "functionCalling", "jsonMode"]) {
    const options = { name: "city", method };
    const prompt = method === "jsonMode" ? `${ASK} Answer in JSON.` : ASK;
    const schema = method === "jsonMode" ? z.record(z.string(), z.any()) : City;
    const object = await llm.withStructuredOutput(schema, options).invoke(prompt);
    schema.parse(object);
  }
}

async function langchainLoops(stream) {
  const llm = new ChatOpenAI({ model, apiKey, temperature: 0, maxTokens: 200, configuration: { baseURL } });
  const tools = Object.entries(TOOLS).map(([name, schema]) => ({
    type: "function", function: { name, description: name, parameters: z.toJSONSchema(schema) },
  }));
  const messages = [new HumanMessage(QUESTION)];
  for (const [name, schema] of Object.entries(TOOLS)) {
    const bound = llm.bindTools(tools, { tool_choice: { type: "function", function: { name } } });
    let answer;
    if (stream) {
      for await (const chunk of await bound.stream(messages)) answer = answer ? answer.concat(chunk) : chunk;
    } else answer = await bound.invoke(messages);
    const [call] = answer.tool_calls;
    assert.equal(call.name, name);
    schema.parse(call.args);
    messages.push(new AIMessage({ content: answer.content, tool_calls: answer.tool_calls }), new ToolMessage({ tool_call_id: call.id, content: RESULTS[name] }));
  }
  assert.ok((await llm.invoke(messages)).content);
}

const compatible = createOpenAICompatible({ name: "detinfer", baseURL, supportsStructuredOutputs: true });
const provider = createOpenAI({ baseURL, apiKey });
const checks = {
  "openai: parse with zod": openaiParses,
  "openai: responses with zod": openaiResponds,
  "openai: embeddings": openaiEmbeds,
  "openai: two tools": () => openaiLoops(false),
  "openai: two tools, streamed": () => openaiLoops(true),
  "@langchain/openai: withStructuredOutput": langchainMakesObjects,
  "@langchain/openai: two tools": () => langchainLoops(false),
  "@langchain/openai: two tools, streamed": () => langchainLoops(true),
};
for (const [name, llm] of [["@ai-sdk/openai-compatible", compatible(model)], ["@ai-sdk/openai, chat", provider.chat(model)], ["@ai-sdk/openai", provider(model)]]) {
  checks[`${name}: objects`] = () => sdkMakesObjects(llm);
  checks[`${name}: two tools`] = () => sdkLoops(llm, false);
  checks[`${name}: two tools, streamed`] = () => sdkLoops(llm, true);
}
checks["@ai-sdk/openai: embeddings"] = () => sdkEmbeds(provider.embedding(model));
checks["@ai-sdk/openai-compatible: embeddings"] = () => sdkEmbeds(compatible.embeddingModel(model));
for (const [name, check] of Object.entries(checks)) {
  const started = Date.now();
  await check();
  console.log(`${name}: ${Date.now() - started} ms`);
}
