// How a prompt is asked for: by the chat's template, or as text where the model has none.

export function question(model, turns, parameters) {
  if (model.chats) return { path: "v1/chat/completions", body: { messages: turns, ...parameters } };
  const prompt = turns.map((turn) => turn.content).join("");
  return { path: "v1/completions", body: { prompt, ...parameters } };
}

// The text that a choice, or a part of one in a stream, adds.
export const textOf = (choice) => choice.delta?.content ?? choice.message?.content ?? choice.text ?? "";

// A seed that this page can show to the last digit: the server's own have 64 bits.
export const drawnSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];
