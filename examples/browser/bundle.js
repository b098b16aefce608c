// A bundle (docs/edge.md, "The format"), read with everything refused that is not as it was written. Each file is
// fetched once, and the bytes that were verified are the ones that are used.

export class BundleError extends Error {}

const FORMAT = 1;
const ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/;
const SIGNATURE_BYTES = 64;

/** A bundle's folder on a server: `read(path)` gives its bytes or null, `adapters()` the ids that the server lists. */
export function onServer(url, ids = []) {
  const at = new URL(url.endsWith("/") ? url : url + "/", document.baseURI);
  const get = (path) => fetch(new URL(path, at), { cache: "no-store" });
  return {
    name: decodeURIComponent(at.pathname).split("/").filter(Boolean).pop() ?? at.host,
    async read(path) {
      const answer = await get(path);
      if (answer.status === 404) return null;
      if (!answer.ok) throw new BundleError(`${path}: the server answers ${answer.status} ${answer.statusText}`);
      return new Uint8Array(await answer.arrayBuffer());
    },
    async adapters() {
      if (ids.length) return ids;
      const answer = await get("adapters/");
      if (!answer.ok || !(answer.headers.get("content-type") ?? "").startsWith("text/html")) return [];
      const links = new DOMParser().parseFromString(await answer.text(), "text/html").querySelectorAll("a[href$='/']");
      return [...links]
        .map((link) => decodeURIComponent(link.getAttribute("href").slice(0, -1)))
        .filter((id) => ID.test(id));
    },
  };
}

/** A bundle's folder from <input type="file" webkitdirectory>. */
export function inFiles(files) {
  const byPath = new Map([...files].map((file) => [file.webkitRelativePath.split("/").slice(1).join("/"), file]));
  const ids = [...byPath.keys()].map((path) => /^adapters\/([^/]+)\/manifest\.json$/.exec(path)?.[1]).filter(Boolean);
  return {
    name: files[0]?.webkitRelativePath.split("/")[0] ?? "",
    read: async (path) => (byPath.has(path) ? new Uint8Array(await byPath.get(path).arrayBuffer()) : null),
    adapters: async () => ids.filter((id) => ID.test(id)).sort(),
  };
}

/** An Ed25519 public key from the text of a .pub.pem file. */
export async function publicKey(pem) {
  const body = /-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----/.exec(pem)?.[1];
  if (!body) throw new BundleError("this is no public key as PEM; give what is in the file that ends in .pub.pem");
  const der = Uint8Array.from(atob(body.replace(/\s/g, "")), (c) => c.charCodeAt(0));
  try {
    return await subtle().importKey("spki", der, "Ed25519", false, ["verify"]);
  } catch (error) {
    const why =
      error.name === "NotSupportedError" ? "this browser knows no Ed25519; a newer one does" : "it is no Ed25519 key";
    throw new BundleError(`the public key cannot be used: ${why}`);
  }
}

/**
 * The base: {manifest, sha256, files}. Of its files all are fetched but the graphs that are not for browsers.
 * trust: {key: from `publicKey` or null, check: false takes a signed bundle without looking at the signature}.
 */
export async function readBase(source, trust) {
  const web = (name) => name.endsWith(".web.onnx") || !name.endsWith(".onnx");
  const base = await readFolder(source, "base", "base", web, trust);
  if (base.manifest.target !== "onnx")
    throw new BundleError(`this bundle is for ${base.manifest.target}, and a browser runs onnx`);
  return base;
}

/** An adapter of this base: {manifest, sha256, files, tensors}. */
export async function readAdapter(source, id, base, trust) {
  if (!ID.test(id)) throw new BundleError(`${id}: no id of an adapter`);
  const ours = (name) => name.endsWith(".safetensors");
  const adapter = await readFolder(source, `adapters/${id}`, "adapter", ours, trust);
  const { manifest, files } = adapter;
  if (manifest.id !== id)
    throw new BundleError(`adapters/${id}: its manifest says it is ${manifest.id}; fetch it again`);
  if (manifest.base !== base.sha256)
    throw new BundleError(`adapters/${id}: made for another base; export it over this one`);
  const found = tensors(files["adapter.safetensors"], `adapters/${id}/adapter.safetensors`);
  checkSlots(slotsOf(base.manifest), base.manifest.max_rank, manifest.rank, found, `adapters/${id}`);
  return { ...adapter, tensors: found };
}

/** The slots of all graphs: what an adapter brings. A slot of two graphs is the same in both. */
function slotsOf({ graphs }) {
  return [
    ...new Map(
      Object.values(graphs)
        .flatMap(({ slots }) => slots)
        .map((slot) => [slot.name, slot]),
    ).values(),
  ];
}

async function readFolder(source, folder, kind, wanted, { key, check }) {
  const text = await needed(source, `${folder}/manifest.json`);
  const sha256 = await hash(text);
  const line = utf8(await needed(source, `${folder}/manifest.sha256`));
  if (line !== `${sha256}  manifest.json\n`) {
    throw new BundleError(`${folder}/manifest.json: not the file that manifest.sha256 has the hash of; fetch it again`);
  }
  if (check) await checkSigned(folder, text, await source.read(`${folder}/manifest.sig`), key);
  const manifest = parsed(text, `${folder}/manifest.json`);
  if (manifest.format !== FORMAT || manifest.kind !== kind) {
    throw new BundleError(
      `${folder}/manifest.json: kind ${manifest.kind} of format ${manifest.format}, and ${kind} of ${FORMAT} is needed`,
    );
  }
  const files = {};
  for (const [name, entry] of Object.entries(manifest.files)) {
    if (!ID.test(name) || name.startsWith("manifest."))
      throw new BundleError(`${folder}/manifest.json: ${name} is no name of a file`);
    if (!wanted(name)) continue;
    const data = await needed(source, `${folder}/${name}`);
    if (data.length !== entry.bytes || (await hash(data)) !== entry.sha256) {
      throw new BundleError(
        `${folder}/${name}: its size or sha256 is not the manifest's: damaged or changed; fetch it again`,
      );
    }
    files[name] = data;
  }
  return { manifest, sha256, files };
}

async function checkSigned(folder, text, signature, key) {
  if (!key && signature) throw new BundleError(`${folder}: it is signed; give the public key of who signed it`);
  if (!key) return;
  if (!signature) throw new BundleError(`${folder}: it is not signed, and a key was given; fetch it from who signs it`);
  if (signature.length !== SIGNATURE_BYTES || !(await subtle().verify("Ed25519", key, signature, text))) {
    throw new BundleError(
      `${folder}/manifest.json: the signature is not that of this key: it was changed, or somebody else signed it`,
    );
  }
}

function checkSlots(slots, maxRank, rank, found, where) {
  const names = new Set(slots.map((slot) => slot.name));
  const odd = Object.keys(found).filter((name) => !names.has(name));
  const missing = [...names].filter((name) => !(name in found));
  const wrong = [...odd.map((name) => `${name}: no such slot`), ...missing.map((name) => `${name}: missing`)];
  const ranks = {};
  for (const { name, shape } of slots) {
    const tensor = found[name];
    if (!tensor) continue;
    const fits =
      tensor.shape.length === shape.length &&
      shape.every((rule, i) => {
        const size = tensor.shape[i];
        return typeof rule === "number"
          ? size === rule
          : size >= 1 && size <= maxRank && size === (ranks[rule] ??= size);
      });
    if (tensor.dtype !== "F32" || !fits)
      wrong.push(`${name}: ${tensor.dtype} [${tensor.shape}], and the slot is F32 [${shape}]`);
    else if (!tensor.data.every(Number.isFinite)) wrong.push(`${name}: has values that are not finite`);
  }
  if (!wrong.length && rank !== Math.max(0, ...Object.values(ranks)))
    wrong.push(`rank ${rank} is not that of the tensors`);
  if (wrong.length) throw new BundleError(`${where}: does not fit the base's slots: ${wrong.slice(0, 4).join("; ")}`);
}

const ARRAYS = { F32: Float32Array, I32: Int32Array, I64: BigInt64Array, BOOL: Uint8Array, F16: Uint16Array };

/** The tensors of a safetensors file: {name: {shape, dtype, data}}. */
export function tensors(file, where) {
  const length = file.length < 8 ? Infinity : Number(new DataView(file.buffer, file.byteOffset).getBigUint64(0, true));
  if (length > file.length - 8) throw new BundleError(`${where}: no safetensors file`);
  const header = parsed(file.subarray(8, 8 + length), where);
  delete header.__metadata__;
  const found = {};
  let after = 0;
  const entries = Object.entries(header).sort(
    (a, b) => a[1].data_offsets[0] - b[1].data_offsets[0] || a[1].data_offsets[1] - b[1].data_offsets[1],
  );
  for (const [
    name,
    {
      dtype,
      shape,
      data_offsets: [begin, end],
    },
  ] of entries) {
    const array = ARRAYS[dtype];
    const bytes = array && shape.reduce((a, b) => a * b, 1) * array.BYTES_PER_ELEMENT;
    if (begin !== after || end - begin !== bytes || 8 + length + end > file.length)
      throw new BundleError(`${where}: ${name} is not where its header says`);
    // sliced, so that the values begin where a typed array may
    found[name] = { shape, dtype, data: new array(file.slice(8 + length + begin, 8 + length + end).buffer) };
    after = end;
  }
  if (8 + length + after !== file.length) throw new BundleError(`${where}: some bytes belong to no tensor`);
  return found;
}

async function needed(source, path) {
  const data = await source.read(path);
  if (data === null) throw new BundleError(`${path}: not there; fetch the bundle again`);
  return data;
}

async function hash(data) {
  const digest = new Uint8Array(await subtle().digest("SHA-256", data));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function subtle() {
  if (!globalThis.crypto?.subtle)
    throw new BundleError(
      "this page cannot verify anything: browsers hash on https and localhost alone; serve it there",
    );
  return crypto.subtle;
}

function utf8(data) {
  return new TextDecoder("utf-8", { fatal: true }).decode(data);
}

function parsed(data, where) {
  try {
    return JSON.parse(utf8(data));
  } catch (error) {
    throw new BundleError(`${where}: no JSON: ${error.message}`);
  }
}
