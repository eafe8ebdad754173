// OpenAI's client for Node against a proxy: node client.mjs ADDRESS NODE_MODULES; prints what it was told as JSON.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [address, modules] = process.argv.slice(2);
const { default: OpenAI } = await import(pathToFileURL(createRequire(`${modules}/`).resolve("openai")));
const client = (budget) => new OpenAI({ baseURL: `${address}/${budget}/v1`, apiKey: "unused" });
const [open, spent] = [client("a"), client("spent")];
const messages = [{ role: "user", content: "six times seven?" }];
const parameters = { type: "object", properties: { question: { type: "string" } } };
const tools = [{ type: "function", function: { name: "ask", parameters } }];

const read = async (stream) => {
  let text = "", usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  return [text, usage];
};
const fails = async (made) => {
  try {
    await made();
  } catch (error) {
    return { status: error.status, code: error.code, message: error.message };
  }
};

const whole = await open.chat.completions.create({ model: "stub", messages });
const [stream, usage] = await read(await open.chat.completions.create({ model: "stub", messages, stream: true }));
const called = (await open.chat.completions.create({ model: "stub", messages, tools })).choices[0].message;
const result = { role: "tool", tool_call_id: called.tool_calls[0].id, content: "42" };
const after = await open.chat.completions.create({ model: "stub", messages: [...messages, called, result], tools });
const responses = await open.responses.create({ model: "stub", input: "six times seven?" });
const { name, arguments: given } = called.tool_calls[0].function;
console.log(JSON.stringify({
  whole: whole.choices[0].message.content,
  usage: whole.usage.completion_tokens,
  stream,
  stream_usage: usage.completion_tokens,
  call: { name, arguments: JSON.parse(given) },
  after_tool: after.choices[0].message.content,
  responses: responses.output_text,
  spent: await fails(() => spent.chat.completions.create({ model: "stub", messages })),
  spent_stream: await fails(async () => read(await spent.chat.completions.create({ model: "stub", messages, stream: true }))),
}));
