// Tests downloads from the hub: manifests, broken answers, refusals, full caches. In Chromium, with the test in the hub's place. These tests need
// no GPU.

import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { launchChromium, noChromium as skip } from "./browsers.js";
import { openFake } from "./flow.js";
import * as native from "./native.js";
import { serve } from "./site.js";

let site, context, page;
/** Requests to the hub since the last test, and the test's answers in place of whole files ("*": of everything). */
let asked, answers;
const cors = { "access-control-allow-origin": "*", "access-control-expose-headers": "content-range, x-error-code" };

/** Answers like the hub, which has the demo model under each name. */
function hub(route) {
  const [, id, name] = new URL(route.request().url()).pathname.match(/^\/(.+?)\/resolve\/main\/(.+)$/);
  const range = route.request().headers().range?.match(/^bytes=(\d+)-(\d+)$/);
  asked.push(range ? `${name} ${range[0]}` : name);
  const special = (range ? null : answers[name]) ?? answers["*"];
  if (special) return special(route);
  const path = join(native.MODEL, name);
  if (!existsSync(path)) return route.fulfill({ status: 404, headers: { ...cors, "x-error-code": "EntryNotFound" } });
  const bytes = readFileSync(path);
  if (!range) return route.fulfill({ status: 200, headers: cors, body: bytes });
  const [from, to] = [Number(range[1]), Number(range[2])];
  return route.fulfill({ status: 206, headers: { ...cors, "content-range": `bytes ${from}-${to}/${bytes.length}` }, body: bytes.subarray(from, to + 1) });
}

before(async () => {
  if (skip) return;
  site = await serve();
  context = await launchChromium();
  await context.route("https://huggingface.co/**", hub);
  page = await openFake(context, site.url);
});

after(async () => {
  await context?.close();
  site?.close();
});

/** Downloads a model on the page. Returns its files' names and sizes, what was told meanwhile, or the error. */
async function download(id, special = {}) {
  [asked, answers] = [[], special];
  return page.evaluate(async (id) => {
    const [{ fromHub }, { Requests }] = [await import("./downloads.js"), await import("./hub.js")];
    const told = [];
    const requests = (globalThis.requests = new Requests((event) => told.push(event)));
    try {
      const files = await fromHub(id, requests);
      return { files: Object.fromEntries(files.map((file) => [file.name, file.size])), told };
    } catch (error) {
      return { error: String(error?.message ?? error), told };
    } finally {
      requests.end();
    }
  }, id);
}

const models = () => page.evaluate(async () => (await import("./downloads.js")).listModels());
const size = (name) => readFileSync(join(native.MODEL, name)).length;

test("a kept model loads without a request, also when the hub is away", { skip }, async () => {
  const first = await download("some/demo");
  assert.equal(first.files["model.safetensors"], size("model.safetensors"), first.error);
  assert.equal(asked.filter((name) => name === "model.safetensors").length, 1);
  const again = await download("some/demo", { "*": (route) => route.abort() });
  assert.deepEqual(again.files, first.files, again.error);
  assert.deepEqual(asked, []);
  assert.deepEqual((await models()).map(({ id, isComplete }) => [id, isComplete]), [["some/demo", true]]);
});

test("a memory plan of a kept model needs no hub either", { skip }, async () => {
  [asked, answers] = [[], { "*": (route) => route.abort() }];
  const sizes = await page.evaluate(async () => {
    const [{ headersFromHub }, { Requests }] = [await import("./downloads.js"), await import("./hub.js")];
    const requests = new Requests(() => {});
    const { config, headers } = await headersFromHub("some/demo", requests);
    requests.end();
    return [JSON.parse(config).model_type, headers.map((h) => [h.name, h.size, h.bytes.length < h.size])];
  });
  assert.deepEqual(sizes, ["llama", [["model.safetensors", size("model.safetensors"), true]]]);
  assert.deepEqual(asked, []);
});

test("what is not the file is not kept, and the next try gets the file", { skip }, async () => {
  const page200 = (route) => route.fulfill({ status: 200, headers: { ...cors, "content-type": "text/html" }, body: "<!doctype html><title>Log in</title>" });
  const cut = (route) => route.fulfill({ status: 200, headers: cors, body: readFileSync(join(native.MODEL, "model.safetensors")).subarray(0, 100_000) });
  const cases = [
    [{ "tokenizer.json": page200 }, /tokenizer\.json: a web page came in place of the file/],
    [{ "config.json": page200 }, /config\.json: a web page came in place of the file/],
    [{ "tokenizer_config.json": (route) => route.fulfill({ status: 200, headers: cors, body: '{"a": ' }) }, /tokenizer_config\.json: what arrived is not the whole file/],
    [{ "model.safetensors": cut }, /model\.safetensors: what arrived is not the whole file \(it ends after 100000 of \d+ bytes\)/],
    [{ "model.safetensors": page200 }, /model\.safetensors: what arrived is not the whole file \(it does not begin with a header\)/],
  ];
  for (const [i, [special, pattern]] of cases.entries()) {
    const id = `bad/answers${i}`;
    const failed = await download(id, special);
    assert.match(failed.error ?? "no error", pattern);
    assert.ok(!(await models()).some((model) => model.id === id && model.isComplete));
    const sound = await download(id);
    assert.equal(sound.files?.["model.safetensors"], size("model.safetensors"), sound.error);
    assert.equal(sound.files["tokenizer.json"], size("tokenizer.json"));
  }
});

test("a file that a page of version 1 has cut short is loaded again", { skip }, async () => {
  await page.evaluate(async () => {
    const cache = await caches.open("jointwise-hub");
    const url = (name) => `https://huggingface.co/old/cut/resolve/main/${name}`;
    await cache.put(url("config.json"), new Response("<html>log in</html>"));
    await cache.put(url("model.safetensors"), new Response(new Uint8Array(1000)));
  });
  assert.deepEqual((await models()).find(({ id }) => id === "old/cut"), { id: "old/cut", bytes: 1019, isComplete: false });
  const loaded = await download("old/cut");
  assert.equal(loaded.files?.["model.safetensors"], size("model.safetensors"), loaded.error);
});

test("refusals say what is wrong with the name, the login or the hub", { skip }, async () => {
  const refuse = (status, code) => ({ "*": (route) => route.fulfill({ status, headers: code ? { ...cors, "x-error-code": code } : cors }) });
  const told = async (status, code) => (await download("mis/typed", refuse(status, code))).error;
  assert.match(await told(401, "RepoNotFound"), /^mis\/typed: the hub has no such model, or it is private\. Check the name$/);
  assert.match(await told(403, "GatedRepo"), /accepted its terms\. Log in to huggingface\.co/);
  assert.match(await told(429), /refuses more requests/);
  assert.match(await told(503), /HTTP status 503\. Try again later/);
  assert.match(await told(404), /the hub has no such model/);
  assert.match((await download("mis/typed", { "*": (route) => route.abort() })).error, /the connection to the hub failed .*Check the connection/);
});

test("addresses of a model's pages are taken, and others are named", { skip }, async () => {
  const ids = (texts) => page.evaluate(async (texts) => {
    const { modelId } = await import("./hub.js");
    return texts.map((text) => {
      try {
        return modelId(text);
      } catch (error) {
        return error.message;
      }
    });
  }, texts);
  const good = ["some/demo", " https://huggingface.co/some/demo ", "https://huggingface.co/some/demo/tree/main", "huggingface.co/some/demo/blob/main/config.json?x=1", "hf.co/some/demo#a", "<https://www.huggingface.co/some/demo/>", "hf://some/demo"];
  assert.deepEqual(await ids(good), good.map(() => "some/demo"));
  const [dataset, word, path] = await ids(["https://huggingface.co/datasets/some/rows", "gpt2", "a/b/c"]);
  assert.match(dataset, /is not the address of a model/);
  assert.match(word, /expected a name such as/);
  assert.match(path, /expected a name such as/);
});

test("a full or forbidden cache does not stop a model from loading", { skip }, async () => {
  const cases = {
    full: () => (Cache.prototype.put = () => Promise.reject(new DOMException("full", "QuotaExceededError"))),
    forbidden: () => (caches.open = () => Promise.reject(new DOMException("not allowed", "SecurityError"))),
  };
  for (const [name, spoil] of Object.entries(cases)) {
    await page.evaluate(spoil);
    const loaded = await download(`no/${name}`);
    assert.equal(loaded.files?.["model.safetensors"], size("model.safetensors"), loaded.error);
    assert.equal(loaded.told.filter(({ event }) => event === "note").length, 1, JSON.stringify(loaded.told));
  }
  await page.reload();
  assert.ok(!(await models()).some(({ id }) => id === "no/full"));
});

test("kept models are deleted one by one", { skip }, async () => {
  const before = (await models()).map(({ id }) => id);
  assert.ok(before.includes("some/demo") && before.includes("old/cut"));
  await page.evaluate(async () => (await import("./downloads.js")).deleteModel("old/cut"));
  assert.deepEqual((await models()).map(({ id }) => id), before.filter((id) => id !== "old/cut"));
});
