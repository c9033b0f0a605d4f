/** Decoded pictures and masks, bounded by their bytes; the least recently used go first. */

export class BitmapCache {
  #entries = new Map();
  #bytes = 0;
  #limit;
  #isShown;

  /** @param {number} limit in bytes @param {(bitmap: ImageBitmap) => boolean} isShown these are not freed */
  constructor(limit, isShown) {
    this.#limit = limit;
    this.#isShown = isShown;
  }

  /** The bitmap if it is here already, or else null. */
  peek(key) {
    return this.#entries.get(key)?.bitmap ?? null;
  }

  has(key) {
    return this.#entries.has(key);
  }

  /** Loads a bitmap; once more if it was dropped meanwhile, because it is outdated then. */
  async get(key, load) {
    for (;;) {
      const entry = this.#entries.get(key) ?? this.#start(key, load);
      this.#entries.delete(key);
      this.#entries.set(key, entry);
      const bitmap = await entry.promise;
      if (this.#entries.get(key) === entry) return bitmap;
    }
  }

  #start(key, load) {
    const entry = { bitmap: null, promise: null };
    this.#entries.set(key, entry);
    entry.promise = load().then(
      (bitmap) => {
        if (this.#entries.get(key) === entry) this.#keep(entry, bitmap);
        else bitmap.close();
        return bitmap;
      },
      (error) => {
        if (this.#entries.get(key) === entry) this.#entries.delete(key);
        throw error;
      },
    );
    return entry;
  }

  #keep(entry, bitmap) {
    entry.bitmap = bitmap;
    this.#bytes += bytesOf(bitmap);
    for (const [key, other] of this.#entries) {
      if (this.#bytes <= this.#limit) return;
      if (other !== entry && other.bitmap) this.#forget(key, other);
    }
  }

  #forget(key, entry) {
    this.#entries.delete(key);
    if (!entry.bitmap) return;
    this.#bytes -= bytesOf(entry.bitmap);
    if (!this.#isShown(entry.bitmap)) entry.bitmap.close();
  }

  /** Forgets the keys for which `test` is true. */
  drop(test) {
    for (const [key, entry] of this.#entries) if (test(key)) this.#forget(key, entry);
  }
}

const bytesOf = (bitmap) => bitmap.width * bitmap.height * 4;
