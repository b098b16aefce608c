/* Runs a bundle's network on the input that is stored in the bundle, with an adapter or with none, and prints the outputs.
 *
 *     ./run BUNDLE [-k PUBLIC.pem] [-a ADAPTER]
 *
 * What it takes from the bundle it verifies first, and the bytes that were verified are the ones that run: the
 * manifest's hash, its signature if a key is given, every file's size and hash, and that the adapter was made for this
 * base. It does not check, as audiolora.edge.Session does, that an adapter's tensors fit the slots, that they are
 * finite, or that no file is a link: `audiolora verify` on the machine that receives a bundle does, and a signature by
 * a key that you trust stands for it. One graph, float32 inputs and outputs, a little-endian machine.
 */
#include <cjson/cJSON.h>
#include <onnxruntime_c_api.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/sha.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SIGNATURE_BYTES = 64, HEX_BYTES = 2 * SHA256_DIGEST_LENGTH + 1, PATH_BYTES = 4096 };
enum { MOST_DIMS = 8, MOST_TENSORS = 16, MOST_VALUES = 1 << 30 };

typedef struct { char *at; size_t size; } Bytes;  /* followed by a 0 that size does not count */
typedef struct { char path[PATH_BYTES]; cJSON *manifest; char sha256[HEX_BYTES]; } Folder;
typedef struct { float *values; int64_t shape[MOST_DIMS]; size_t dims, count; } Tensor;

static const char *const GRAPH = "base"; /* a plain network is one graph, called so */
static const OrtApi *ort;

static _Noreturn void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(EXIT_FAILURE);
}

static void check(OrtStatus *status) {
    if (status != NULL) fail("ONNX Runtime: %s", ort->GetErrorMessage(status));
}

/* ---- The bundle: docs/edge.md, "The format" ---- */

static void join(char path[PATH_BYTES], const char *folder, const char *name) {
    if ((size_t)snprintf(path, PATH_BYTES, "%s/%s", folder, name) >= PATH_BYTES) fail("%s: the path is too long", folder);
}

static Bytes read_file(const char *folder, const char *name) {
    char path[PATH_BYTES];
    join(path, folder, name);
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) fail("%s: cannot be read; fetch it again", path);
    long size = ftell(file);
    rewind(file);
    char *at = size < 0 ? NULL : malloc((size_t)size + 1);
    if (at == NULL || fread(at, 1, (size_t)size, file) != (size_t)size) fail("%s: cannot be read; fetch it again", path);
    fclose(file);
    at[size] = 0;
    return (Bytes){at, (size_t)size};
}

static void sha256(Bytes data, char hex[HEX_BYTES]) {
    unsigned char digest[SHA256_DIGEST_LENGTH];
    SHA256((const unsigned char *)data.at, data.size, digest);
    for (int i = 0; i < SHA256_DIGEST_LENGTH; i++) sprintf(hex + 2 * i, "%02x", digest[i]);
}

static void check_signature(const char *folder, Bytes manifest, const char *key_file) {
    FILE *file = fopen(key_file, "r");
    EVP_PKEY *key = file == NULL ? NULL : PEM_read_PUBKEY(file, NULL, NULL, NULL);
    if (key == NULL || EVP_PKEY_id(key) != EVP_PKEY_ED25519) fail("%s: no Ed25519 public key as PEM", key_file);
    Bytes signature = read_file(folder, "manifest.sig");
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    if (signature.size != SIGNATURE_BYTES || EVP_DigestVerifyInit(context, NULL, NULL, NULL, key) != 1 ||
        EVP_DigestVerify(context, (const unsigned char *)signature.at, signature.size,
                         (const unsigned char *)manifest.at, manifest.size) != 1)
        fail("%s/manifest.json: the signature is not that of %s; fetch it again from where it was made", folder, key_file);
    EVP_MD_CTX_free(context);
    EVP_PKEY_free(key);
    free(signature.at);
    fclose(file);
}

/* An object's member; what is missing is an error, so that nothing below looks at NULL. */
static cJSON *member(const cJSON *object, const char *name) {
    cJSON *found = cJSON_GetObjectItemCaseSensitive(object, name);
    if (found == NULL) fail("the manifest or header has no %s", name);
    return found;
}

static const char *text(const cJSON *object, const char *name) {
    const char *found = cJSON_GetStringValue(member(object, name));
    if (found == NULL) fail("%s must be a string", name);
    return found;
}

static Folder open_folder(const char *path, const char *kind, const char *key_file) {
    Folder folder = {.manifest = NULL};
    snprintf(folder.path, sizeof folder.path, "%s", path);
    Bytes manifest = read_file(path, "manifest.json"), line = read_file(path, "manifest.sha256");
    char wanted[HEX_BYTES + sizeof "  manifest.json\n"];
    sha256(manifest, folder.sha256);
    snprintf(wanted, sizeof wanted, "%s  manifest.json\n", folder.sha256);
    if (strcmp(line.at, wanted) != 0) fail("%s/manifest.json: not the file that manifest.sha256 has the hash of", path);
    char signature[PATH_BYTES];
    join(signature, path, "manifest.sig");
    if (key_file != NULL) check_signature(path, manifest, key_file);
    else if (access(signature, F_OK) == 0) fail("%s: it is signed; give the public key: -k PUBLIC.pem", path);
    folder.manifest = cJSON_ParseWithLength(manifest.at, manifest.size);
    if (folder.manifest == NULL) fail("%s/manifest.json: no JSON", path);
    if (member(folder.manifest, "format")->valuedouble != 1 || strcmp(text(folder.manifest, "kind"), kind) != 0)
        fail("%s/manifest.json: not a %s of format 1", path, kind);
    free(manifest.at);
    free(line.at);
    return folder;
}

static Bytes verified(const Folder *folder, const char *name) {
    const cJSON *entry = member(member(folder->manifest, "files"), name);
    Bytes data = read_file(folder->path, name);
    char found[HEX_BYTES];
    sha256(data, found);
    if ((double)data.size != member(entry, "bytes")->valuedouble || strcmp(found, text(entry, "sha256")) != 0)
        fail("%s/%s: its size or sha256 is not the manifest's: damaged or changed; fetch it again", folder->path, name);
    return data;
}

/* A float32 tensor of a safetensors file: 8 bytes n, n bytes of JSON, the values. It points into the file. */
static Tensor tensor_of(Bytes file, const char *kind, const char *value) {
    char name[PATH_BYTES];
    snprintf(name, sizeof name, "%s.%s.%s", GRAPH, kind, value);
    uint64_t length = 0;
    if (file.size >= sizeof length) memcpy(&length, file.at, sizeof length);
    if (file.size < sizeof length || length > file.size - sizeof length) fail("%s: no safetensors file", name);
    cJSON *header = cJSON_ParseWithLength(file.at + sizeof length, length), *size;
    const cJSON *entry = member(header, name), *offsets = member(entry, "data_offsets");
    if (strcmp(text(entry, "dtype"), "F32") != 0) fail("%s: %s, and this program runs F32", name, text(entry, "dtype"));
    Tensor tensor = {.count = 1};
    cJSON_ArrayForEach(size, member(entry, "shape")) {
        if (tensor.dims == MOST_DIMS) fail("%s: more than %d axes", name, MOST_DIMS);
        if (!(size->valuedouble >= 0 && size->valuedouble < MOST_VALUES)) fail("%s: no size", name);
        tensor.shape[tensor.dims++] = (int64_t)size->valuedouble;
        tensor.count *= (size_t)size->valuedouble;
        if (tensor.count >= MOST_VALUES) fail("%s: too many values", name);
    }
    if (cJSON_GetArraySize(offsets) != 2) fail("%s: no data_offsets", name);
    double begin = cJSON_GetArrayItem(offsets, 0)->valuedouble, end = cJSON_GetArrayItem(offsets, 1)->valuedouble;
    if (begin < 0 || end - begin != (double)(tensor.count * sizeof(float)) || end > (double)(file.size - sizeof length - length))
        fail("%s: its offsets are not its values'", name);
    tensor.values = (float *)(file.at + sizeof length + length + (size_t)begin);
    cJSON_Delete(header);
    return tensor;
}

/* ---- ONNX Runtime ---- */

static OrtSession *open_session(OrtEnv *env, Bytes model) {
    OrtSessionOptions *options;
    OrtSession *session;
    check(ort->CreateSessionOptions(&options));
    /* A model may name other files as its weights. There are none where it is told to look. */
    check(ort->AddSessionConfigEntry(options, "session.model_external_initializers_file_folder_path", "/dev/null/none"));
    check(ort->SetSessionLogSeverityLevel(options, ORT_LOGGING_LEVEL_ERROR)); /* it would warn of every slot */
    check(ort->CreateSessionFromArray(env, model.at, model.size, options, &session));
    ort->ReleaseSessionOptions(options);
    return session;
}

static void print_output(const char *who, const char *name, const OrtValue *value, Tensor wanted) {
    OrtTensorTypeAndShapeInfo *info;
    ONNXTensorElementDataType type;
    size_t count;
    float *y;
    double worst = 0;
    check(ort->GetTensorTypeAndShape(value, &info));
    check(ort->GetTensorElementType(info, &type));
    check(ort->GetTensorShapeElementCount(info, &count));
    if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || count != wanted.count) fail("%s: not the stored output's shape", name);
    check(ort->GetTensorMutableData((OrtValue *)value, (void **)&y));
    printf("%s %s", who, name);
    for (size_t i = 0; i < count; i++) {
        printf(" %.9g", y[i]);
        double difference = fabs((double)y[i] - wanted.values[i]);
        if (!isnan(worst) && !(difference <= worst)) worst = difference;
    }
    printf("\n");
    fprintf(stderr, "%s %s: largest difference from what torch gave: %.1e\n", who, name, worst);
    ort->ReleaseTensorTypeAndShapeInfo(info);
}

static size_t names_of(const cJSON *specs, const char *names[MOST_TENSORS]) {
    size_t count = 0;
    const cJSON *spec;
    cJSON_ArrayForEach(spec, specs) {
        if (count == MOST_TENSORS) fail("more than %d inputs or outputs", MOST_TENSORS);
        names[count++] = text(spec, "name");
    }
    return count;
}

static void run(OrtSession *session, const cJSON *graph, OrtRunOptions *options, const char *who, Bytes inputs, Bytes wanted) {
    const char *in[MOST_TENSORS], *out[MOST_TENSORS];
    size_t n_in = names_of(member(graph, "inputs"), in), n_out = names_of(member(graph, "outputs"), out);
    OrtValue *given[MOST_TENSORS], *found[MOST_TENSORS] = {NULL};
    OrtMemoryInfo *memory;
    check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    for (size_t i = 0; i < n_in; i++) {
        Tensor x = tensor_of(inputs, "input", in[i]);
        check(ort->CreateTensorWithDataAsOrtValue(memory, x.values, x.count * sizeof *x.values, x.shape, x.dims,
                                                  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &given[i]));
    }
    check(ort->Run(session, options, in, (const OrtValue *const *)given, n_in, out, n_out, found));
    for (size_t i = 0; i < n_out; i++) {
        print_output(who, out[i], found[i], tensor_of(wanted, "output", out[i]));
        ort->ReleaseValue(found[i]);
    }
    for (size_t i = 0; i < n_in; i++) ort->ReleaseValue(given[i]);
    ort->ReleaseMemoryInfo(memory);
}

/* The adapter of this name: its file goes to ONNX Runtime as it was verified, and counts in runs with these options. */
static OrtLoraAdapter *activate(const Folder *base, const Folder *adapter, const char *name, OrtRunOptions *options) {
    OrtLoraAdapter *made;
    if (strcmp(text(adapter->manifest, "id"), name) != 0) fail("%s: it is %s", adapter->path, text(adapter->manifest, "id"));
    if (strcmp(text(adapter->manifest, "base"), base->sha256) != 0) fail("%s: made for another base", adapter->path);
    Bytes file = verified(adapter, "base.onnx_adapter");
    check(ort->CreateLoraAdapterFromArray(file.at, file.size, NULL, &made));
    check(ort->RunOptionsAddActiveLoraAdapter(options, made));
    free(file.at);
    return made;
}

int main(int argc, char **argv) {
    const char *key = NULL, *name = NULL;
    for (int option; (option = getopt(argc, argv, "k:a:")) != -1;) {
        if (option == 'k') key = optarg;
        else if (option == 'a') name = optarg;
        else return EXIT_FAILURE;
    }
    if (optind + 1 != argc) fail("usage: %s [-k PUBLIC.pem] [-a ADAPTER] BUNDLE", argv[0]);
    ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (ort == NULL) fail("ONNX Runtime %s is older than the header", OrtGetApiBase()->GetVersionString());

    char path[PATH_BYTES], adapters[PATH_BYTES];
    join(path, argv[optind], "base");
    Folder base = open_folder(path, "base", key);
    Bytes model = verified(&base, "base.onnx"), stored = verified(&base, "selftest.safetensors");
    OrtEnv *env;
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "audiolora", &env));
    OrtSession *session = open_session(env, model);
    const cJSON *graph = member(member(base.manifest, "graphs"), GRAPH);
    if (cJSON_GetArraySize(member(graph, "states")) > 0) fail("%s: this program keeps no states between runs", base.path);
    if (name == NULL) {
        run(session, graph, NULL, "base", stored, stored);
    } else {
        OrtRunOptions *options;
        join(adapters, argv[optind], "adapters");
        join(path, adapters, name);
        Folder adapter = open_folder(path, "adapter", key);
        check(ort->CreateRunOptions(&options));
        OrtLoraAdapter *active = activate(&base, &adapter, name, options);
        run(session, graph, options, name, stored, verified(&adapter, "selftest.safetensors"));
        ort->ReleaseRunOptions(options);
        ort->ReleaseLoraAdapter(active);
        cJSON_Delete(adapter.manifest);
    }
    ort->ReleaseSession(session);
    ort->ReleaseEnv(env);
    cJSON_Delete(base.manifest);
    return EXIT_SUCCESS;
}
